// The tab Label.
import { element } from "./dom.js";

export function open(panel, about) {
  panel.append(element("h1", {}, "Label"), element("p", {}, about.models.map((model) => model.name).join(", ")));
  return { show(parameters) {} };
}
