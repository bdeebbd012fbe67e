// The tab Attention.
import { element } from "./dom.js";

export function open(panel, about) {
  panel.append(element("h1", {}, "Attention"), element("p", {}, about.models.map((model) => model.name).join(", ")));
  return { show(parameters) {} };
}
