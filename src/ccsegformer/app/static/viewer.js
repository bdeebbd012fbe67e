// A view that can be dragged and zoomed, of layers of tiles or pictures that lie over one another.
//
// World pixels are those of the largest zoom of the grid: {zoom, bounds: [left, top, right, bottom]}.
// A layer is {name, url(z, x, y), version, largest} for tiles or {name, picture} for an element that fills the
// bounds; `opacity` is 0 to 1, `side` "a" or "b" keeps it left or right of the divider, `sharp` shows pixels as squares.
import { element } from "./dom.js";

const TILE = 256;
const CLOSEST = 24; // screen pixels for one of the world

export class Viewer {
  constructor({ label, onPoint }) {
    this.onPoint = onPoint;
    this.layers = new Map(); // name -> {layer, place, tiles}
    this.pointers = new Map();
    this.divider = 0.5;
    this.stack = element("div", {});
    this.handle = element("div", {
      class: "divider", role: "slider", tabindex: 0, "aria-label": "Divider between the models",
      "aria-valuemin": 0, "aria-valuemax": 100, hidden: true,
    });
    this.chips = { a: element("span", { class: "chip a" }), b: element("span", { class: "chip b" }) };
    this.reading = element("output", { class: "chip reading" });
    this.credit = element("span", { class: "chip credit" });
    const button = (name, text, act) => element("button", { type: "button", "aria-label": name, title: name, onclick: act }, text);
    this.place = element(
      "div", { class: "viewer", tabindex: 0, role: "group", "aria-label": `${label}. Arrow keys move, plus and minus zoom, 0 shows all.` },
      this.stack, this.chips.a, this.chips.b, element("span", { class: "cross" }), this.handle, this.reading, this.credit,
      element("div", { class: "buttons" },
        button("Zoom in", "+", () => this.zoomBy(1.6)), button("Zoom out", "−", () => this.zoomBy(1 / 1.6)),
        button("Show all", "⤢", () => this.fit())),
    );
    this.#listen();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.redraw())).observe(this.place);
  }

  // Show another world, whole.
  open(grid) {
    this.grid = grid;
    this.setLayers([]);
    this.fit();
  }

  setLayers(layers) {
    const names = layers.map((layer) => layer.name);
    for (const [name, held] of this.layers) if (!names.includes(name)) { held.place.remove(); this.layers.delete(name); }
    for (const layer of layers) {
      const held = this.layers.get(layer.name) ?? { place: element("div", { class: "layer" }), tiles: new Map() };
      if (layer.picture && held.layer?.picture !== layer.picture) held.place.replaceChildren(layer.picture);
      held.layer = layer;
      held.place.classList.toggle("sharp", Boolean(layer.sharp));
      this.layers.set(layer.name, held);
      this.stack.append(held.place);
    }
    this.compares = layers.some((layer) => layer.side === "b");
    this.handle.hidden = !this.compares;
    this.redraw();
  }

  setDivider(share) {
    this.divider = Math.min(1, Math.max(0, share));
    this.handle.setAttribute("aria-valuenow", Math.round(100 * this.divider));
    this.redraw();
  }

  get size() {
    return [this.place.clientWidth, this.place.clientHeight];
  }

  fit() {
    if (!this.grid || !this.place.clientWidth) return;
    const [left, top, right, bottom] = this.grid.bounds, [width, height] = this.size;
    this.scale = Math.min(width / (right - left), height / (bottom - top));
    this.smallest = this.scale / 4;
    this.origin = [(left + right - width / this.scale) / 2, (top + bottom - height / this.scale) / 2];
    this.fitted = true;
    this.redraw();
  }

  zoomBy(factor, x = this.size[0] / 2, y = this.size[1] / 2) {
    if (!this.grid) return;
    const before = this.world(x, y);
    this.scale = Math.min(Math.max(CLOSEST, 2 * this.smallest), Math.max(this.smallest, this.scale * factor));
    this.origin = [before[0] - x / this.scale, before[1] - y / this.scale];
    this.#moved();
  }

  panBy(x, y) {
    if (!this.grid) return;
    const [left, top, right, bottom] = this.grid.bounds, [width, height] = this.size;
    const keep = (value, low, high, span) => Math.min(high - span / 2, Math.max(low - span / 2, value));
    this.origin = [
      keep(this.origin[0] - x / this.scale, left, right, width / this.scale),
      keep(this.origin[1] - y / this.scale, top, bottom, height / this.scale),
    ];
    this.#moved();
  }

  world(x, y) {
    return [this.origin[0] + x / this.scale, this.origin[1] + y / this.scale];
  }

  #moved() {
    this.fitted = false;
    this.redraw();
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.#draw();
    });
  }

  #draw() {
    if (!this.grid || !this.place.clientWidth) return;
    this.place.classList.toggle("free", !this.fitted || this.grid.kind != null);
    const [width, height] = this.size, middle = Math.round(width * this.divider);
    this.handle.style.left = `${middle}px`;
    for (const { layer, place, tiles } of this.layers.values()) {
      place.style.opacity = layer.opacity ?? 1;
      place.style.clipPath = !this.compares || !layer.side ? "" : layer.side === "a" ? `inset(0 ${width - middle}px 0 0)` : `inset(0 0 0 ${middle}px)`;
      if (layer.picture) this.#put(layer.picture, ...this.grid.bounds);
      else this.#drawTiles(layer, place, tiles, width, height);
    }
  }

  #put(part, left, top, right, bottom) {
    const at = (value, axis) => Math.round((value - this.origin[axis]) * this.scale);
    const x = at(left, 0), y = at(top, 1);
    Object.assign(part.style, { left: `${x}px`, top: `${y}px`, width: `${at(right, 0) - x}px`, height: `${at(bottom, 1) - y}px` });
  }

  #drawTiles(layer, place, tiles, width, height) {
    const [left, top, right, bottom] = this.grid.bounds;
    const sharpness = Math.min(2, devicePixelRatio || 1);
    const z = Math.max(0, Math.min(layer.largest ?? this.grid.zoom, this.grid.zoom + Math.round(Math.log2(this.scale * sharpness))));
    const span = TILE * 2 ** (this.grid.zoom - z);
    const [west, north] = this.world(0, 0), [east, south] = this.world(width, height);
    const clip = layer.everywhere ? [west, north, east, south] : [Math.max(west, left), Math.max(north, top), Math.min(east, right), Math.min(south, bottom)];
    const wanted = new Set();
    const count = 2 ** Math.max(0, z);
    for (let y = Math.floor(clip[1] / span); y * span < clip[3]; y++)
      for (let x = Math.floor(clip[0] / span); x * span < clip[2]; x++)
        if (x >= 0 && y >= 0 && (this.grid.kind !== "mercator" || (x < count && y < count))) wanted.add(`${z}/${x}/${y}`);
    for (const key of wanted) {
      const tile = tiles.get(key) ?? { version: null };
      tiles.set(key, tile);
      if (tile.version !== layer.version && !tile.loading) this.#load(tile, key, layer, place);
    }
    const complete = [...wanted].every((key) => tiles.get(key).image);
    for (const [key, tile] of tiles) {
      if (!wanted.has(key) && (complete || !tile.image)) {
        tile.image?.remove();
        tiles.delete(key);
      } else if (tile.image) {
        const [zoom, x, y] = key.split("/").map(Number), size = TILE * 2 ** (this.grid.zoom - zoom);
        this.#put(tile.image, x * size, y * size, (x + 1) * size, (y + 1) * size);
      }
    }
  }

  #load(tile, key, layer, place) {
    const image = element("img", { alt: "", draggable: "false", referrerpolicy: layer.everywhere ? "strict-origin-when-cross-origin" : null });
    tile.loading = true;
    tile.version = layer.version;
    const settle = () => {
      tile.loading = false;
      this.redraw();
    };
    image.onload = () => {
      if (tile.image) tile.image.replaceWith(image);
      else place.append(image);
      tile.image = image;
      settle();
    };
    image.onerror = settle;
    image.src = layer.url(...key.split("/"));
  }

  #at(event) {
    const box = this.place.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #listen() {
    const { place, handle, pointers } = this;
    place.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(2 ** (-event.deltaY / (event.deltaMode ? 12 : 240)), ...this.#at(event));
    }, { passive: false });
    place.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button, a, .divider") || event.button > 0) return;
      pointers.set(event.pointerId, this.#at(event));
      place.setPointerCapture(event.pointerId);
      this.#point(event);
    });
    place.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId), now = this.#at(event);
      if (before) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
        pointers.set(event.pointerId, now);
        if (other) {
          const gap = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
          this.zoomBy(gap(now) / gap(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
        } else this.panBy(now[0] - before[0], now[1] - before[1]);
      }
      this.#point(event);
    });
    for (const name of ["pointerup", "pointercancel"]) place.addEventListener(name, (event) => pointers.delete(event.pointerId));
    place.addEventListener("pointerleave", () => this.onPoint(null));
    place.addEventListener("keydown", (event) => {
      if (event.target !== place) return;
      const step = Math.min(...this.size) / 8;
      const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (moves[event.key]) this.panBy(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoomBy(1.6);
      else if (event.key === "-") this.zoomBy(1 / 1.6);
      else if (event.key === "0") this.fit();
      else return;
      event.preventDefault();
      if (this.grid) this.onPoint(this.world(this.size[0] / 2, this.size[1] / 2));
    });
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) this.setDivider(this.#at(event)[0] / this.size[0]);
    });
    handle.addEventListener("keydown", (event) => {
      const share = { ArrowLeft: this.divider - 0.02, ArrowRight: this.divider + 0.02, Home: 0, End: 1 }[event.key];
      if (share == null) return;
      event.preventDefault();
      this.setDivider(share);
    });
  }

  #point(event) {
    if (this.grid && !event.target.closest("button, a")) this.onPoint(this.world(...this.#at(event)));
  }
}
