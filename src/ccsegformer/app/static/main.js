// Tabs. The address after # names the tab, and after a ? what the tab shows: #attention?x=3&y=4.
import { getJSON } from "./api.js";
import { element, showError } from "./dom.js";

const NAMES = ["label", "attention", "runs"];
const opened = {}; // what each tab's module returned: {show(parameters)}

const tabOf = (name) => document.getElementById(`tab-${name}`);
const panelOf = (name) => document.getElementById(`panel-${name}`);

async function show() {
  const [hash, query = ""] = location.hash.slice(1).split("?");
  const name = NAMES.includes(hash) ? hash : "label";
  for (const other of NAMES) {
    const chosen = other === name;
    tabOf(other).setAttribute("aria-selected", chosen);
    tabOf(other).tabIndex = chosen ? 0 : -1;
    panelOf(other).hidden = !chosen;
  }
  try {
    opened[name] ??= import(`./${name}.js`).then(async (module) => module.open(panelOf(name), await about));
    (await opened[name])?.show?.(new URLSearchParams(query));
  } catch (error) {
    delete opened[name];
    panelOf(name).replaceChildren(element("div", { class: "error-place" }));
    showError(panelOf(name).firstChild, error);
  }
}

const about = getJSON("/api/about");
about.then((found) => (document.getElementById("version").textContent = `ccsegformer ${found.version}`));
for (const [place, name] of NAMES.entries()) {
  tabOf(name).addEventListener("click", () => (location.hash = name));
  tabOf(name).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = NAMES[(place + step + NAMES.length) % NAMES.length];
    location.hash = next;
    tabOf(next).focus();
  });
}
addEventListener("hashchange", show);
show();
