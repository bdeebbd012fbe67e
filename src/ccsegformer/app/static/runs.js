// The tab Runs: a list, and up to two runs side by side.
import { getJSON } from "./api.js";
import { element, showError } from "./dom.js";

const WIDTH = 640, HEIGHT = 240, LEFT = 44, BOTTOM = 24, COLORS = ["var(--accent)", "var(--second)"];
const score = (value) => (value == null ? "–" : value.toFixed(3));

export function open(panel) {
  const list = element("div", { class: "runs-list" });
  const problem = element("div");
  const shown = element("div", { class: "runs-shown" });
  panel.replaceChildren(element("h1", {}, "Runs"), problem, list, shown);
  let chosen = [];

  function choose(name, box) {
    if (!box.checked) chosen = chosen.filter((other) => other !== name);
    else chosen = [...chosen, name].slice(-2);
    location.hash = `runs?${chosen.map((each) => `run=${encodeURIComponent(each)}`).join("&")}`;
  }

  async function refresh() {
    try {
      const found = await getJSON("/api/runs");
      list.replaceChildren(found.runs.length ? table(found.runs, chosen, choose) : empty(found.folder));
      const known = chosen.filter((name) => found.runs.some((run) => run.name === name));
      const runs = await Promise.all(known.map((name) => getJSON(`/api/runs/run?name=${encodeURIComponent(name)}`)));
      shown.replaceChildren(...(runs.length ? detail(runs) : []));
      problem.replaceChildren();
    } catch (error) {
      showError(problem, error);
    }
  }

  return {
    show(parameters) {
      chosen = parameters.getAll("run").slice(-2);
      return refresh();
    },
  };
}

const empty = (folder) =>
  element("div", { class: "empty" }, element("p", {}, `No runs in ${folder}. `),
    element("p", {}, "Train one with ccsegformer train, or name another folder with --runs."));

function table(runs, chosen, choose) {
  const rows = runs.map((run) => {
    const box = element("input", { type: "checkbox", "aria-label": `Show ${run.name}`, onchange: () => choose(run.name, box) });
    box.checked = chosen.includes(run.name);
    const about = [run.model, run.data].filter(Boolean).join(" · ");
    return element("tr", {},
      element("td", {}, box),
      element("td", { class: "run-name" }, element("b", {}, run.name), element("span", { class: "quiet" }, about),
        run.problem ? element("span", { class: "bad-words" }, run.problem) : null),
      element("td", { class: "wide-only" }, new Date(1000 * run.modified).toLocaleString()),
      element("td", { class: "wide-only" }, run.state),
      element("td", { class: "number" }, score(run.score)));
  });
  const heads = [["", ""], ["Run", ""], ["Changed", "wide-only"], ["State", "wide-only"], ["mIoU", "number"]];
  return element("table", { class: "card-table" },
    element("thead", {}, element("tr", {}, ...heads.map(([text, kind]) => element("th", { class: kind, scope: "col" }, text)))),
    element("tbody", {}, ...rows));
}

function detail(runs) {
  const names = element("p", { class: "legend" }, ...runs.map((run, place) =>
    element("span", {}, element("i", { class: `line line-${place}` }), run.name)));
  const parts = [names];
  const curves = runs.filter((run) => run.loss.length);
  if (curves.length) parts.push(element("section", { class: "card" }, element("h2", {}, "Training loss"), plot(runs)));
  if (runs.some((run) => Object.keys(run.classes).length)) parts.push(element("section", { class: "card" }, scores(runs)));
  const reports = runs.filter((run) => run.report).map((run) =>
    element("a", { class: "button", target: "_blank", rel: "noopener", href: `/api/runs/report?name=${encodeURIComponent(run.name)}` },
      `Worst images of ${run.name}`));
  if (reports.length) parts.push(element("p", { class: "row" }, ...reports));
  parts.push(element("section", { class: "card" }, element("h2", {}, runs.length > 1 ? "Settings that differ" : "Settings"), settings(runs)));
  return parts;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function plot(runs) {
  const points = runs.flatMap((run) => run.loss);
  const last = Math.max(...points.map(([step]) => step), 1), top = Math.max(...points.map(([, loss]) => loss)) || 1;
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / last, y = (loss) => 8 + (HEIGHT - BOTTOM - 8) * (1 - loss / top);
  const made = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "curves",
    "aria-label": `Training loss of ${runs.map((run) => run.name).join(" and ")}` });
  for (const share of [0, 0.5, 1]) {
    made.append(svg("line", { x1: LEFT, x2: WIDTH - 8, y1: y(share * top), y2: y(share * top), class: "grid" }),
      svg("text", { x: LEFT - 6, y: y(share * top) + 4, "text-anchor": "end" }, (share * top).toPrecision(2)),
      svg("text", { x: x(share * last), y: HEIGHT - 6, "text-anchor": share === 1 ? "end" : "middle" }, `${Math.round(share * last)}`));
  }
  runs.forEach((run, place) => {
    const path = run.loss.map(([step, loss], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
    made.append(svg("path", { d: path, fill: "none", stroke: COLORS[place], "stroke-width": 2, "stroke-linejoin": "round" }));
  });
  return made;
}

function scores(runs) {
  const classes = [...new Set(runs.flatMap((run) => Object.keys(run.classes)))];
  const two = runs.length > 1;
  const row = (name, values, tag = "td") => element("tr", {}, element(tag, {}, name),
    ...values.map((value) => element("td", { class: "number" }, score(value))),
    two ? element("td", { class: "number" }, difference(values)) : null);
  const interval = runs.map((run) => (run.interval ? `${score(run.interval[0])}–${score(run.interval[1])}` : "–"));
  return element("div", {}, element("h2", {}, "Scores"),
    ...[...new Set(runs.map((run) => run.protocol).filter(Boolean))].map((text) => element("p", { class: "quiet" }, text)),
    element("div", { class: "scrolls" }, element("table", {},
      element("thead", {}, element("tr", {}, element("th", {}, "IoU"), ...runs.map((run) => element("th", { class: "number" }, run.name)),
        two ? element("th", { class: "number" }, "difference") : null)),
      element("tbody", {}, row("mean", runs.map((run) => run.score), "th"),
        element("tr", {}, element("td", {}, "95% interval"), ...interval.map((text) => element("td", { class: "number" }, text)), two ? element("td") : null),
        ...classes.map((name) => row(name, runs.map((run) => run.classes[name])))))));
}

function difference([first, second]) {
  if (first == null || second == null) return "–";
  return `${second < first ? "−" : "+"}${Math.abs(second - first).toFixed(3)}`;
}

function settings(runs) {
  const flat = (value, path) => (value !== null && typeof value === "object" && !Array.isArray(value)
    ? Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key)) : [[path, JSON.stringify(value)]]);
  const all = runs.map((run) => new Map(flat(run.settings, "")));
  const keys = [...new Set(all.flatMap((each) => [...each.keys()]))].filter((key) => key);
  const wanted = runs.length > 1 ? keys.filter((key) => all[0].get(key) !== all[1].get(key)) : keys;
  if (!wanted.length) return element("p", { class: "quiet" }, runs.length > 1 ? "None." : "None are stored.");
  return element("div", { class: "scrolls" }, element("table", { class: "settings" }, ...wanted.map((key) =>
    element("tr", {}, element("td", {}, key), ...all.map((each) => element("td", {}, each.get(key) ?? "–"))))));
}
