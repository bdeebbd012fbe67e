// Shows where a pixel looks. Used by the page of one image and by the app.
//
// A source has: image (URL), size [height, width], stages (number), colors {attention: {label, light, dark}}, and
// weights(stage, [y, x]) -> Promise of {pixel: [y, x], models: [{name, panels}]}. A panel has: title, attention,
// composed, grid [H, W], position [h, w], heads, ratio, and either row and column (Float32Array, heads x W and
// heads x H) or weights (heads x rows x columns) with its shape [rows, columns].

const PROFILE = 0.16; // height of the profiles beside a cross, as a share of the image's shorter side
const dark = matchMedia("(prefers-color-scheme: dark)");

const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// state: {x, y, stage (from 0), head (from 0, or -1 for the mean)}; changed(state) is called after each change.
// Returns {set(state)}.
export async function mountAttention(place, source, state, changed = () => {}) {
  const [height, width] = source.size;
  const backdrop = await darken(source.image, width, height);
  state = { x: Math.floor(width / 2), y: Math.floor(height / 2), stage: source.stages - 2, head: -1, ...state };
  let shown = null; // what is drawn
  let asked = 0;

  const stages = make("div", { class: "stages", role: "group", "aria-label": "Stage" });
  for (let stage = 0; stage < source.stages; stage++) {
    const button = make("button", { type: "button" }, `Stage ${stage + 1}`);
    button.addEventListener("click", () => set({ stage }));
    stages.append(button);
  }
  const heads = make("select", { "aria-label": "Heads" });
  heads.addEventListener("change", () => set({ head: Number(heads.value) }));
  const save = make("button", { type: "button", class: "save" }, "Save as PNG");
  save.addEventListener("click", () => exportPNG());
  const readout = make("p", { class: "readout" });
  const problem = make("p", { class: "problem", role: "alert" });
  const models = make("div", { class: "models" });
  place.classList.add("attention-view");
  place.replaceChildren(make("div", { class: "controls" }, stages, heads, save), readout, problem, models);
  new ResizeObserver(() => draw()).observe(models);
  dark.addEventListener("change", () => draw());

  async function set(change) {
    state = { ...state, ...change };
    state.x = clamp(state.x, width);
    state.y = clamp(state.y, height);
    state.stage = clamp(state.stage, source.stages);
    const turn = ++asked;
    [...stages.children].forEach((button, stage) => button.setAttribute("aria-pressed", stage === state.stage));
    let found;
    try {
      found = await source.weights(state.stage, [state.y, state.x]);
    } catch (error) {
      if (turn === asked) problem.textContent = error.message;
      return;
    }
    if (turn !== asked) return; // a later click has overtaken this one
    problem.textContent = "";
    shown = found;
    [state.y, state.x] = found.pixel;
    const most = Math.max(1, ...found.models.flatMap(({ panels }) => panels.map((panel) => panel.heads)));
    state.head = state.head < most ? state.head : -1;
    heads.replaceChildren(
      make("option", { value: -1 }, "Mean over heads"),
      ...Array.from({ length: most }, (_, head) => make("option", { value: head }, `Head ${head + 1} of ${most}`)),
    );
    heads.value = state.head;
    heads.disabled = most === 1;
    readout.textContent = `Pixel (${state.x}, ${state.y}). Click elsewhere, or move with the arrow keys.`;
    arrange();
    changed({ ...state });
  }

  // Make the canvases that are missing; keep the others, so that the focus stays.
  function arrange() {
    const sections = shown.models.map((model, index) => {
      const section = models.children[index] ?? make("section", {}, make("h3"), make("div", { class: "panels-of-attention" }));
      section.querySelector("h3").textContent = model.name;
      const grid = section.querySelector("div");
      grid.querySelector("p")?.remove();
      while (grid.children.length > model.panels.length) grid.lastChild.remove();
      while (grid.children.length < model.panels.length) grid.append(makePanel(index, grid.children.length));
      if (!model.panels.length) grid.replaceChildren(make("p", { class: "quiet" }, "No attention in this stage."));
      return section;
    });
    models.replaceChildren(...sections);
    draw();
  }

  function makePanel(model, index) {
    const canvas = make("canvas", { tabindex: "0", role: "img" });
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      const scale = (width + margin(width, height)) / box.width;
      return [(event.clientY - box.top) * scale - above(shown.models[model]), (event.clientX - box.left) * scale];
    };
    canvas.addEventListener("click", (event) => {
      const [y, x] = at(event).map(Math.floor);
      if (y >= 0 && y < height && x >= 0 && x < width) set({ x, y });
    });
    canvas.addEventListener("pointermove", (event) => {
      readout.textContent = describe(shown.models[model].panels[index], state.head, at(event), source.size);
    });
    canvas.addEventListener("pointerleave", () => (readout.textContent = `Pixel (${state.x}, ${state.y}).`));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [rows, columns] = source.steps ?? shown.models[model].panels[index].grid;
      set({
        y: state.y + step[0] * Math.ceil(height / rows),
        x: state.x + step[1] * Math.ceil(width / columns),
      });
    });
    return make("figure", {}, canvas, make("figcaption"));
  }

  function draw() {
    if (!shown) return;
    shown.models.forEach((model, index) => {
      model.panels.forEach((panel, number) => {
        const figure = models.children[index].querySelectorAll("figure")[number];
        const canvas = figure.firstChild;
        const caption = `${panel.title}, ${kindOf(panel)}${ofHead(panel)}`;
        figure.lastChild.textContent = caption;
        canvas.setAttribute("aria-label", `${model.name}: ${caption}, from pixel (${state.x}, ${state.y})`);
        const across = figure.clientWidth || 320;
        const scale = across / (width + margin(width, height));
        const ratio = Math.min(devicePixelRatio || 1, 2);
        canvas.width = Math.round(across * ratio);
        canvas.height = Math.round((height + above(model)) * scale * ratio);
        const context = canvas.getContext("2d");
        context.scale(ratio * scale, ratio * scale);
        context.translate(0, above(model));
        drawPanel(context, panel, state.head, 1 / scale);
      });
    });
  }

  const kindOf = (panel) => (panel.composed ? "composed" : source.colors[panel.attention].label.toLowerCase());
  const ofHead = (panel) =>
    panel.heads === 1 ? (panel.averaged ? " (mean over heads)" : "")
      : state.head < 0 || state.head >= panel.heads ? " (mean over heads)" : ` (head ${state.head + 1})`;

  // Room above the image, for the profiles of rows.
  const above = ({ panels }) => (panels.some((panel) => panel.row) ? margin(width, height) : 0);

  // Draw in pixels of the image, whose upper left corner is at 0, 0; `unit` is a pixel of the screen.
  function drawPanel(context, panel, head, unit) {
    const color = source.colors[panel.attention];
    context.save();
    context.imageSmoothingEnabled = true;
    context.drawImage(backdrop, 0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    context.imageSmoothingEnabled = false;
    let profiles = () => {};
    if (panel.row) {
      const row = take(panel.row, panel.heads, head);
      const column = take(panel.column, panel.heads, head);
      const peak = peakOf(row.length + column.length - 1, row, column);
      const [rows, columns] = panel.grid;
      const [h, w] = panel.position;
      column[h] = row[w]; // the position itself, whose one weight is drawn where both lines meet
      const least = Math.min(width, height) / 60;
      const tall = Math.max(height / rows, least);
      const wide = Math.max(width / columns, least);
      const middle = [((h + 0.5) * height) / rows, ((w + 0.5) * width) / columns];
      context.drawImage(colored(column, 1, peak, color), middle[1] - wide / 2, 0, wide, height);
      context.drawImage(colored(row, columns, peak, color), 0, middle[0] - tall / 2, width, tall);
      profiles = () => drawProfiles(context, row, column, peak, color, unit);
    } else {
      const weights = take(panel.weights, panel.heads, head);
      const [rows, columns] = panel.shape;
      const picture = colored(weights, columns, peakOf(weights.length, weights), color);
      const [down, across] = [(rows * panel.ratio) / panel.grid[0], (columns * panel.ratio) / panel.grid[1]];
      context.drawImage(picture, 0, 0, width * across, height * down);
    }
    context.restore();
    profiles();
    for (const [stroke, thick] of [["#000", 4], ["#fff", 2]]) {
      context.beginPath();
      context.arc(state.x + 0.5, state.y + 0.5, 5 * unit, 0, 2 * Math.PI);
      context.lineWidth = thick * unit;
      context.strokeStyle = stroke;
      context.stroke();
    }
    context.restore();
  }

  function drawProfiles(context, row, column, peak, color, unit) {
    const tall = PROFILE * Math.min(width, height);
    context.fillStyle = dark.matches ? color.dark : color.light;
    const bars = (weights, length, bar) => {
      for (let index = 0; index < weights.length; index++) {
        bar((index * length) / weights.length, length / weights.length, (tall * weights[index]) / peak);
      }
    };
    bars(row, width, (start, long, high) => context.fillRect(start, -4 * unit - high, long + 0.1 * unit, high));
    bars(column, height, (start, long, high) => context.fillRect(width + 4 * unit, start, high, long + 0.1 * unit));
  }

  async function exportPNG() {
    const style = getComputedStyle(document.documentElement);
    const tile = 420;
    const scale = tile / (width + margin(width, height));
    const most = Math.max(1, ...shown.models.map(({ panels }) => panels.length));
    const across = Math.min(most, 6);
    const high = shown.models.map((model) => Math.ceil((height + above(model)) * scale) + 44);
    const lines = shown.models.map(({ panels }) => Math.max(1, Math.ceil(panels.length / across)));
    const canvas = make("canvas", { width: 2 * (across * (tile + 24) + 24) });
    canvas.height = 2 * (64 + lines.reduce((sum, count, index) => sum + 44 + count * high[index], 0));
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = style.getPropertyValue("--paper") || (dark.matches ? "#15171a" : "#fdfdfc");
    context.fillRect(0, 0, canvas.width, canvas.height);
    const write = (text, x, y, font) => {
      context.fillStyle = style.getPropertyValue("--ink") || (dark.matches ? "#e9eaec" : "#1c1e21");
      context.font = `${font} system-ui, sans-serif`;
      context.fillText(text, x, y);
    };
    write(`Where pixel (${state.x}, ${state.y}) looks in stage ${state.stage + 1}`, 24, 38, "600 20px");
    let top = 64;
    shown.models.forEach((model, index) => {
      write(model.name, 24, top + 22, "600 15px");
      model.panels.forEach((panel, number) => {
        const left = 24 + (number % across) * (tile + 24);
        const start = top + 44 + Math.floor(number / across) * high[index];
        context.save();
        context.translate(left, start);
        context.scale(scale, scale);
        context.translate(0, above(model));
        drawPanel(context, panel, state.head, 1 / scale);
        context.restore();
        write(`${panel.title}, ${kindOf(panel)}${ofHead(panel)}`, left, start + high[index] - 24, "13px");
      });
      top += 44 + lines[index] * high[index];
    });
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    const link = make("a", {
      href: URL.createObjectURL(blob),
      download: `attention_${state.x}_${state.y}_stage${state.stage + 1}.png`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  await set({});
  return { set };
}

const clamp = (value, length) => Math.max(0, Math.min(length - 1, Math.floor(value) || 0));
const margin = (width, height) => 1.25 * PROFILE * Math.min(width, height);

// The weights of one head, or their mean over heads; a panel with fewer heads shows the mean.
function take(weights, heads, head) {
  const length = weights.length / heads;
  if (head >= 0 && head < heads) return weights.slice(head * length, (head + 1) * length);
  const mean = new Float32Array(length);
  weights.forEach((weight, index) => (mean[index % length] += weight / heads));
  return mean;
}

// The weight that is drawn brightest: the largest, or 4 times a uniform weight if that is more.
const peakOf = (count, ...arrays) => arrays.flatMap((array) => [...array]).reduce((a, b) => Math.max(a, b), 4 / count);

// Weights as a picture: transparent at 0, bright at the peak, by the square root.
function colored(weights, columns, peak, color) {
  const canvas = make("canvas", { width: columns, height: weights.length / columns });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const ramp = [color.light, color.dark].map((hex) => [1, 3, 5].map((from) => parseInt(hex.slice(from, from + 2), 16)));
  ramp.push(ramp[1].map((level) => 255 - 0.25 * (255 - level)));
  weights.forEach((weight, index) => {
    const strength = Math.min(1, Math.sqrt(weight / peak));
    const segment = strength < 0.5 ? 0 : 1;
    const share = 2 * strength - segment;
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[4 * index + channel] = ramp[segment][channel] * (1 - share) + ramp[segment + 1][channel] * share;
    }
    pixels.data[4 * index + 3] = 255 * Math.min(1, 1.1 * strength);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The image, dark and almost grey, so that colour means weight.
async function darken(address, width, height) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const scale = Math.min(1, 1200 / Math.max(width, height));
  const canvas = make("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const grey = 0.299 * pixels.data[at] + 0.587 * pixels.data[at + 1] + 0.114 * pixels.data[at + 2];
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[at + channel] = 13 + 0.45 * (0.75 * grey + 0.25 * pixels.data[at + channel]);
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// What the pointer is over, in words.
function describe(panel, head, [y, x], [height, width]) {
  const here = `(${Math.floor(x)}, ${Math.floor(y)})`;
  if (y < 0 || y >= height || x < 0 || x >= width) return "";
  const say = (weight, count) => `${here}: weight ${weight.toPrecision(3)}, ${(weight * count).toPrecision(2)} times uniform`;
  const [rows, columns] = panel.grid;
  if (panel.row) {
    const least = Math.min(width, height) / 120;
    const [h, w] = panel.position;
    const row = take(panel.row, panel.heads, head);
    const count = rows + columns - 1;
    if (Math.abs(y - ((h + 0.5) * height) / rows) <= Math.max(height / rows / 2, least)) {
      return say(row[Math.floor((x * columns) / width)], count);
    }
    if (Math.abs(x - ((w + 0.5) * width) / columns) <= Math.max(width / columns / 2, least)) {
      const at = Math.floor((y * rows) / height);
      return say(at === h ? row[w] : take(panel.column, panel.heads, head)[at], count);
    }
    return `${here}: not in this row or column`;
  }
  const [down, across] = panel.shape;
  const [i, j] = [(y * rows) / height, (x * columns) / width].map((at) => Math.floor(at / panel.ratio));
  if (i >= down || j >= across) return `${here}: in no cell of the reduced grid`;
  return say(take(panel.weights, panel.heads, head)[i * across + j], down * across);
}
