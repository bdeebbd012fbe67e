// Files of the folder that was given on the command line.
import { getJSON } from "./api.js";
import { element, showError } from "./dom.js";

export function openFolder(onFile) {
  const list = element("ul", { class: "files" });
  const where = element("p", { class: "quiet" });
  const box = element("details", {}, element("summary", {}, "Open from the folder"), where, list);
  box.addEventListener("toggle", () => box.open && !list.children.length && go("."));

  async function go(path) {
    try {
      const { folder, folders, files } = await getJSON(`/api/label/folder?path=${encodeURIComponent(path)}`);
      const below = (name) => (folder === "." ? name : `${folder}/${name}`);
      const entry = (text, act) => element("li", {}, element("button", { type: "button", onclick: act }, text));
      where.textContent = folder === "." ? "" : folder;
      list.replaceChildren(
        ...(folder === "." ? [] : [entry("← up", () => go(folder.includes("/") ? folder.replace(/\/[^/]*$/, "") : "."))]),
        ...folders.map((name) => entry(`${name}/`, () => go(below(name)))),
        ...files.map((name) => entry(name, () => onFile(below(name)))));
      if (!list.children.length) list.append(element("li", { class: "quiet" }, "No images here."));
    } catch (error) {
      showError(list, error);
    }
  }
  return box;
}
