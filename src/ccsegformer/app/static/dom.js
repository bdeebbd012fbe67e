// Small helpers for building the page.

// element("button", {class: "quiet", onclick: f, disabled: true}, "text", child)
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Show an error in a place of the page; screen readers read it out.
export function showError(place, error) {
  const text = String(error.message ?? error);
  place.replaceChildren(element("p", { class: "message bad", role: "alert" }, text));
}

export function percent(share) {
  const near = Math.min(share, 1 - share); // 0.4% and 99.6% are neither 0 nor 1
  return `${(100 * share).toFixed(near > 0 && (near < 0.005 || share < 0.0995) ? 1 : 0)}%`;
}
export const seconds = (value) => (value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`);
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (count >= 1000 && place < 4) [count, place] = [count / 1000, place + 1];
  return `${count.toFixed(count < 10 && place && count % 1 ? 1 : 0)} ${units[place]}`;
}
