// Reads the weights that the page holds, for one pixel of each cell of a coarse grid, and shows them.
// A weight is stored as round(255 sqrt(weight / largest)), with the largest of each panel and head.

const data = JSON.parse(document.getElementById("data").textContent);

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const [codes, maxima] = [new Uint8Array(await inflate(data.codes)), new Float32Array(await inflate(data.maxima))];

// Where each panel's weights begin, in the order in which they were written.
let [firstCode, firstMaximum] = [0, 0];
const clicks = data.steps[0] * data.steps[1];
for (const panel of data.models.flatMap((model) => model.stages.flat())) {
  panel.length = panel.lengths.reduce((sum, length) => sum + length, 0);
  [panel.firstCode, panel.firstMaximum] = [firstCode, firstMaximum];
  firstCode += clicks * panel.heads * panel.length;
  firstMaximum += clicks * panel.heads;
}

function weights(stage, [y, x]) {
  const [height, width] = data.size;
  const cell = [Math.floor((y * data.steps[0]) / height), Math.floor((x * data.steps[1]) / width)];
  const pixel = cell.map((at, axis) => Math.floor(((at + 0.5) * data.size[axis]) / data.steps[axis]));
  const click = cell[0] * data.steps[1] + cell[1];
  const models = data.models.map(({ name, stages }) => ({ name, panels: stages[stage].map((panel) => read(panel, click, pixel)) }));
  return Promise.resolve({ pixel, models });
}

function read(panel, click, pixel) {
  const parts = panel.lengths.map((length) => new Float32Array(panel.heads * length));
  for (let head = 0; head < panel.heads; head++) {
    let at = panel.firstCode + (click * panel.heads + head) * panel.length;
    const largest = maxima[panel.firstMaximum + click * panel.heads + head];
    panel.lengths.forEach((length, part) => {
      for (let index = 0; index < length; index++) parts[part][head * length + index] = largest * (codes[at++] / 255) ** 2;
    });
  }
  const position = pixel.map((at, axis) => Math.floor((at * panel.grid[axis]) / data.size[axis]));
  const own = parts.length === 2 ? { row: parts[0], column: parts[1] } : { weights: parts[0] };
  return { ...panel, position, ...own };
}

const numbers = (hash) => {
  const given = new URLSearchParams(hash.slice(1));
  const state = {};
  for (const [name, shift] of [["x", 0], ["y", 0], ["stage", 1], ["head", 1]]) {
    if (/^\d+$/.test(given.get(name) ?? "")) state[name] = Number(given.get(name)) - shift;
  }
  return state;
};
const remember = ({ x, y, stage, head }) =>
  history.replaceState(null, "", `#x=${x}&y=${y}&stage=${stage + 1}${head < 0 ? "" : `&head=${head + 1}`}`);

const view = await mountAttention(
  document.getElementById("view"),
  { ...data, stages: data.models[0].stages.length, weights },
  { ...data.start, ...numbers(location.hash) },
  remember,
);
addEventListener("hashchange", () => view.set({ head: -1, ...numbers(location.hash) }));
