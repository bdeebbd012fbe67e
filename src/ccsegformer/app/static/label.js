// The tab Label: choose an image, label it with one model or two, look at it, and download the results.
import { cancel, follow, getJSON, postBytes, postJSON } from "./api.js";
import { bytes, element, percent, showError } from "./dom.js";
import { readValues, tilesOf } from "./label_layers.js";
import { outcome } from "./label_outcome.js";
import { openFolder } from "./label_folder.js";
import { Viewer } from "./viewer.js";

const BASEMAP = "https://tile.openstreetmap.org";
const REFRESH = 1000; // milliseconds between looks at a growing map

export async function open(panel, about) {
  const limits = await getJSON("/api/label/limits");
  const state = { image: null, job: null, values: [], version: 0, turn: 0 };

  // Choosing an image
  const file = element("input", { type: "file", class: "unseen", id: "file" });
  const drop = element("label", { class: "drop", for: "file" }, file, element("b", {}, "Drop an image or GeoTIFF"),
    element("span", { class: "quiet" }, `or choose a file. Photographs up to ${bytes(limits.photograph_bytes)}, scenes up to ${bytes(limits.scene_bytes)}.`));
  const examples = element("div", { class: "examples" });
  for (let number = 0; number < limits.examples; number++)
    examples.append(element("button", { type: "button", "aria-label": `Example ${number + 1}`, onclick: () => choose(() => postJSON(`/api/label/examples/${number}`)) },
      element("img", { src: `/api/label/examples/${number}/picture.png`, alt: "", loading: "lazy" })));
  const example = element("button", { type: "button", class: "wide", onclick: () => choose(() => postJSON(`/api/label/examples/${limits.examples}`), "Drawing the scene…") },
    "Example scene (GeoTIFF)");
  const problem = element("div", {});
  const folder = about.root ? openFolder((path) => choose(() => postJSON("/api/label/paths", { path }))) : null;

  // Models
  const options = () => about.models.map((model) => element("option", { value: model.key }, model.name));
  const first = element("select", { id: "model-a", onchange: start }, ...options());
  const second = element("select", { id: "model-b", onchange: start }, element("option", { value: "" }, "No other model"), ...options());
  const field = (text, input) => element("label", { class: "field" }, element("span", {}, text), input);

  // The stage
  const title = element("h1", {}, "Label an image");
  const facts = element("p", { class: "quiet" });
  const viewer = new Viewer({ label: "Image and labels", onPoint });
  const opacity = element("input", { type: "range", min: 0, max: 100, value: 60, id: "opacity", oninput: layers });
  const polygons = element("input", { type: "checkbox", onchange: layers });
  const basemap = element("input", { type: "checkbox", onchange: layers });
  const check = (input, text) => element("label", { class: "check" }, input, element("span", {}, text));
  const sceneControls = element("div", { class: "row" }, check(polygons, "Polygons"),
    check(basemap, "Basemap (loads openstreetmap.org)"));
  const said = element("p", { role: "status" });
  const bar = element("progress", { max: 1, "aria-label": "Progress" });
  const stop = element("button", { type: "button", onclick: end }, "Cancel");
  const working = element("div", { class: "working", hidden: true }, said, bar, stop);
  const go = element("button", { type: "button", class: "main", onclick: start }, "Map this scene");
  const failed = element("div", {});
  const results = element("div", {});
  const begin = element("div", { class: "empty" },
    element("p", {}, "Drop a photograph or a GeoTIFF anywhere on this page, or pick an example."),
    element("p", { class: "quiet" }, "It is labelled on this machine and is not sent anywhere."));
  const view = element("div", { hidden: true }, viewer.place,
    element("div", { class: "controls" }, field("Opacity of the labels", opacity), sceneControls));

  panel.append(element("div", { class: "label-view" },
    element("div", {},
      element("section", { class: "card" }, element("h2", {}, "Image"), drop, problem,
        element("p", { class: "quiet" }, "Examples"), examples, example, folder),
      element("section", { class: "card" }, element("h2", {}, "Models"), field("Model", first),
        about.models.length > 1 ? field("Compare with", second) : null)),
    element("div", { class: "stage" }, element("div", { class: "stage-head" }, title, facts), begin, view, go, working, failed, results)));
  go.hidden = true;

  file.addEventListener("change", () => file.files.length && upload(file.files[0]));
  panel.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  panel.addEventListener("dragleave", (event) => event.relatedTarget && panel.contains(event.relatedTarget) || drop.classList.remove("over"));
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });

  function upload(given) {
    file.value = "";
    choose(() => {
      const photograph = !/\.tiff?$/i.test(given.name);
      const largest = photograph ? limits.photograph_bytes : limits.scene_bytes;
      if (given.size > largest) throw new Error(`${given.name}: too large: a ${photograph ? "photograph" : "TIFF"} may have ${bytes(largest)}`);
      return postBytes(`/api/label/images?name=${encodeURIComponent(given.name)}`, given);
    }, `Reading ${given.name}…`);
  }

  // Ask the server for an image, show it, and label it if it is a photograph.
  async function choose(ask, text = "Reading…") {
    const turn = ++state.turn;
    problem.replaceChildren(element("p", { class: "message", role: "status" }, text));
    try {
      const image = await ask();
      if (turn !== state.turn) return;
      problem.replaceChildren();
      await show(image);
      if (image.kind === "photograph") await start();
    } catch (error) {
      if (turn === state.turn) showError(problem, error);
    }
  }

  async function show(image) {
    if (state.job) cancel(state.job).catch(() => {});
    Object.assign(state, { image, job: null, values: [], picture: null });
    for (const place of [failed, results]) place.replaceChildren();
    working.hidden = true;
    title.textContent = image.name;
    facts.textContent = `${image.width} × ${image.height} pixels`;
    begin.hidden = true;
    view.hidden = false;
    const scene = image.kind === "scene";
    go.hidden = !scene;
    go.textContent = "Map this scene";
    sceneControls.hidden = !scene;
    basemap.closest("label").hidden = image.grid?.kind !== "mercator";
    if (scene && image.grid.kind !== "mercator") facts.textContent += ", without a position on the map";
    if (!scene) {
      state.picture = element("img", { src: `/api/label/images/${image.key}/picture.jpg`, alt: "" });
      await state.picture.decode().catch(() => {});
    }
    viewer.open(image.grid ?? { zoom: 0, bounds: [0, 0, image.width, image.height] });
    layers();
    if (innerWidth < 960) title.scrollIntoView({ block: "start" });
  }

  function chosenModels() {
    const keys = [Number(first.value)];
    if (second.value !== "" && Number(second.value) !== keys[0]) keys.push(Number(second.value));
    return keys;
  }

  async function start(event) {
    const image = state.image;
    if (!image || (event?.type === "change" && image.kind === "scene" && !state.job)) return;
    if (state.job) cancel(state.job).catch(() => {});
    for (const place of [failed, results]) place.replaceChildren();
    state.values = [];
    const keys = chosenModels();
    let job;
    try {
      job = await postJSON("/api/label/jobs", { image: image.key, models: keys });
      state.job = job;
      state.models = keys.map((key) => about.models[key]);
      layers();
      job = await follow(job, (news) => news.key === state.job?.key && progress(news));
      if (job.key !== state.job?.key) return;
      working.hidden = true;
      if (job.state === "cancelled") {
        said.textContent = "";
        failed.replaceChildren(element("p", { class: "message", role: "status" }, "Cancelled."));
        state.job = null;
        go.hidden = image.kind !== "scene";
        layers();
        return;
      }
      if (image.kind === "photograph") state.values = await Promise.all(keys.map((_, number) => readValues(job, number, state.models[number])));
      if (job.key !== state.job?.key) return;
      go.hidden = true;
      state.version = "whole";
      layers();
      results.replaceChildren(outcome(job, image, state.models));
    } catch (error) {
      if (job && job.key !== state.job?.key) return;
      working.hidden = true;
      state.job = null;
      go.hidden = image.kind !== "scene";
      go.textContent = "Try again";
      layers();
      showError(failed, error);
    }
  }

  function end() {
    if (!state.job) return;
    stop.disabled = true;
    ending = state.job.key;
    said.textContent = "Cancelling…";
    cancel(state.job).catch((error) => showError(failed, error));
  }

  let looked = 0, ending = null;
  function progress(job) {
    const waits = job.state === "waiting";
    working.hidden = !["waiting", "running"].includes(job.state);
    stop.disabled = ending === job.key;
    go.hidden = true;
    said.textContent = stop.disabled ? "Cancelling…" : waits ? "Waiting for another job…" : `Labelling with ${job.message || "the model"}…`;
    if (waits || !job.fraction) bar.removeAttribute("value");
    else bar.value = job.fraction;
    if (state.image.kind === "scene" && Date.now() - looked > REFRESH) {
      looked = Date.now();
      state.version = job.version;
      layers();
    }
  }

  function layers() {
    const { image, job, values } = state;
    if (!image) return;
    const strength = opacity.value / 100, shown = [];
    const sides = state.job && state.models.length > 1 ? ["a", "b"] : [null];
    if (basemap.checked && image.grid?.kind === "mercator")
      shown.push({ name: "basemap", url: (z, x, y) => `${BASEMAP}/${z}/${x}/${y}.png`, version: 0, largest: 19, everywhere: true });
    viewer.credit.replaceChildren(...(shown.length ? ["© ", element("a", { href: "https://www.openstreetmap.org/copyright", target: "_blank", rel: "noopener" }, "OpenStreetMap"), " contributors"] : []));
    if (image.kind === "scene") {
      shown.push({ name: `scene ${image.key}`, url: (z, x, y) => `/api/label/images/${image.key}/${z}/${x}/${y}.png`, version: 0 });
      if (job) sides.forEach((side, number) => {
        shown.push({ ...tilesOf(job, number, "map", state.version), side, opacity: strength, sharp: true });
        if (polygons.checked && state.version === "whole") shown.push({ ...tilesOf(job, number, "polygons", 0), side });
      });
    } else {
      shown.push({ name: `photograph ${image.key}`, picture: state.picture });
      values.forEach((each, number) => shown.push({ name: `labels ${number} ${job?.key}`, picture: each.canvas, side: sides[number] ?? null, opacity: strength, sharp: true }));
    }
    viewer.setLayers(shown);
    const named = sides.length > 1 && (values.length > 1 || image.kind === "scene");
    viewer.chips.a.textContent = named ? state.models[0].name : "";
    viewer.chips.b.textContent = named ? state.models[1].name : "";
  }

  // Tell class and probability at a point of the world.
  let asked = 0;
  async function onPoint(point) {
    const turn = ++asked;
    const [left, top, right, bottom] = viewer.grid?.bounds ?? [0, 0, 0, 0];
    const inside = point && point[0] >= left && point[0] < right && point[1] >= top && point[1] < bottom;
    if (!inside || !state.job) return viewer.reading.replaceChildren();
    let found = state.values.map((each) => each.at((point[0] - left) / (right - left), (point[1] - top) / (bottom - top)));
    if (state.image.kind === "scene") {
      await new Promise((resolve) => setTimeout(resolve, 60)); // only where the pointer rests
      if (turn !== asked || !state.job) return;
      const job = state.job;
      found = await Promise.all(state.models.map((_, number) =>
        getJSON(`/api/label/jobs/${job.key}/${number}/value?x=${point[0]}&y=${point[1]}`).catch(() => null)));
      if (turn !== asked) return;
    }
    viewer.reading.replaceChildren(...found.map((value, number) => value && element("span", {},
      found.length > 1 ? element("small", {}, state.models[number].name) : null,
      element("i", { class: "swatch", "data-color": state.models[number].classes[value.label].color }),
      `${state.models[number].classes[value.label].name} ${percent(value.probability)}`)).filter(Boolean));
    for (const swatch of viewer.reading.querySelectorAll(".swatch")) swatch.style.background = swatch.dataset.color;
  }

  return {};
}
