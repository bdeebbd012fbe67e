// What a finished job says: shares of the classes, time and memory of each model, and downloads.
import { bytes, element, percent, seconds } from "./dom.js";
import { fileOf } from "./label_layers.js";

const FEWEST = 0.0005; // shares below are not listed one by one

export function outcome(job, image, models) {
  const { results, agreement } = job.result;
  return element("div", { class: "outcome" }, shares(results, models),
    element("section", { class: "card" }, element("h2", {}, "Cost"), costs(results, models),
      agreement == null ? null : element("p", {}, `The models agree on ${percent(agreement)} of the pixels.`),
      ...results.flatMap((result) => result.notes ?? []).map((note) => element("p", { class: "quiet" }, note)),
      element("div", { class: "downloads" }, element("h2", {}, "Download"), downloads(job, image, models))));
}

function shares(results, models) {
  const same = models.every((model) => model.classes.every(({ name }, label) => models[0].classes[label]?.name === name));
  const tables = same ? [results] : results.map((result) => [result]);
  return element("section", { class: "card" }, element("h2", {}, "Classes"),
    ...tables.map((group, number) => table(group, same ? models : [models[number]])));
}

function table(results, models) {
  const { classes } = models[0];
  const largest = (label) => Math.max(...results.map((result) => result.shares[label]));
  const found = classes.map((_, label) => label).filter((label) => largest(label) >= FEWEST).sort((a, b) => largest(b) - largest(a));
  const top = found.length ? largest(found[0]) : 1;
  const bar = (share, color) => {
    const made = element("i", { class: "bar" });
    Object.assign(made.style, { width: `${(100 * share) / top}%`, background: color });
    return made;
  };
  const swatch = (color) => {
    const made = element("i", { class: "swatch" });
    made.style.background = color;
    return made;
  };
  const rows = found.map((label) => element("tr", {},
    element("td", {}, element("span", {}, swatch(classes[label].color), classes[label].name)),
    element("td", { class: "bars", "aria-hidden": "true" }, ...results.map((result) => bar(result.shares[label], classes[label].color))),
    ...results.map((result) => element("td", { class: "number" }, percent(result.shares[label])))));
  const rest = classes.length - found.length;
  return element("div", {}, element("table", { class: "shares" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Class"), element("td", {}),
      ...models.map((model) => element("th", { scope: "col", class: "number" }, models.length > 1 ? model.name : "Share")))),
    element("tbody", {}, ...rows)),
    rest ? element("p", { class: "quiet" }, `${rest} other ${rest === 1 ? "class has" : "classes have"} less than 0.05% each.`) : null);
}

function costs(results, models) {
  return element("table", {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Model"), element("th", { scope: "col", class: "number" }, "Time"),
      element("th", { scope: "col", class: "number" }, "Peak memory"))),
    element("tbody", {}, ...results.map((result, number) => element("tr", {},
      element("td", {}, models[number].name, element("br"), element("span", { class: "quiet" },
        result.window ? `windows of ${result.window} pixels` : "in one piece")),
      element("td", { class: "number" }, seconds(result.seconds)),
      element("td", { class: "number" }, bytes(result.memory))))));
}

function downloads(job, image, models) {
  const files = image.kind === "scene"
    ? [["map.tif", "GeoTIFF"], ["polygons.gpkg", "GeoPackage"], ["map.png", "PNG"]]
    : [["labels.png", "Class ids"], ["overlay.png", "Overlay"]];
  return element("div", {}, ...models.map((model, number) => element("div", { class: "row" },
    models.length > 1 ? element("span", { class: "quiet" }, model.name) : null,
    ...files.map(([file, text]) => element("a", { class: "button", href: fileOf(job, number, file), download: "" }, text)))));
}
