// The tab Attention: choose models and an image, click a pixel, see where it looks.
// The address holds all of it: #attention?models=0,1&image=example-2&x=30&y=40&stage=3&head=1
import { follow, getJSON, postBytes, postJSON, cancel } from "./api.js";
import { element, showError } from "./dom.js";
import { mountAttention } from "/api/attention/view.js";

const EXPLANATION =
  "Click a picture. Each shows the attention weights of that pixel in one block: criss-cross attention looks along its " +
  "row and its column, efficient attention at a coarse map of the image. Composed: one row of the product of two " +
  "attention matrices, without values, projections and MLPs, the first averaged over its heads. Brightness is the " +
  "square root of the weight over the panel's largest, or over 4 times a uniform weight if that is more.";
const MOST_MODELS = 4;

export async function open(panel, about) {
  for (const address of ["/api/attention/view.css", "/static/attention.css"]) {
    document.head.append(element("link", { rel: "stylesheet", href: address }));
  }
  const usable = about.models.filter((model) => model.attention);
  const { examples } = await getJSON("/api/label/limits");
  let wanted = { models: usable.slice(0, 2).map((model) => model.key), image: "example-0" };
  let pixel = {}; // x, y, stage and head, as the view calls them
  let shown = ""; // models and image that the view shows
  let view = null;
  let turn = 0;

  const boxes = usable.map((model) => {
    const box = element("input", { type: "checkbox", value: model.key, onchange: chooseModels });
    return element("label", { class: "check" }, box, element("span", {}, model.name));
  });
  const pictures = Array.from({ length: examples + 1 }, (_, number) =>
    element(
      "button",
      {
        type: "button",
        class: number === examples ? "scene" : null,
        "aria-label": number === examples ? "Example scene" : `Example ${number + 1}`,
        onclick: () => choose({ image: `example-${number}` }),
      },
      number === examples
        ? element("span", {}, "Scene")
        : element("img", { src: `/api/label/examples/${number}/picture.png`, alt: "", width: 64, height: 64 }),
    ),
  );
  const file = element("input", { type: "file", class: "unseen", id: "attention-file", onchange: () => upload(file.files[0]) });
  const drop = element("label", { class: "drop", for: "attention-file" }, file, element("b", {}, "Drop an image or GeoTIFF"),
    element("span", { class: "quiet" }, "or choose a file. Large photographs are reduced to 1024 pixels, and of large scenes the middle is shown."));
  const status = element("div", { class: "status", role: "status" });
  const problem = element("div");
  const place = element("div");
  panel.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  panel.addEventListener("dragleave", () => drop.classList.remove("over"));
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    upload(event.dataTransfer.files[0]);
  });
  panel.replaceChildren(
    element("div", { class: "label-view" },
      element("div", {},
        element("section", { class: "card" }, element("h2", {}, "Image"), drop,
          element("p", { class: "quiet" }, "Examples"), element("div", { class: "examples" }, ...pictures)),
        element("section", { class: "card" }, element("h2", {}, "Models"), ...boxes)),
      element("div", { class: "stage" },
        element("h1", {}, "Where does a pixel look?"), element("p", { class: "quiet explanation" }, EXPLANATION),
        status, problem, place)),
  );
  if (!usable.length) {
    showError(problem, "None of the models shows its attention: name a SegFormer's folder or hub name.");
    return {};
  }

  function chooseModels(event) {
    const models = boxes.map((box) => box.firstChild).filter((box) => box.checked).map((box) => Number(box.value));
    if (models.length && models.length <= MOST_MODELS) choose({ models });
    else event.target.checked = !event.target.checked;
  }

  async function upload(chosen) {
    if (!chosen) return;
    const own = ++turn;
    problem.replaceChildren();
    status.replaceChildren("Sending the image…");
    try {
      const image = await postBytes(`/api/label/images?name=${encodeURIComponent(chosen.name)}`, chosen);
      if (own === turn) choose({ image: image.key });
    } catch (error) {
      status.replaceChildren();
      showError(problem, error);
    }
    file.value = "";
  }

  function choose(change) {
    wanted = { ...wanted, ...change };
    refresh();
  }

  async function refresh() {
    const key = JSON.stringify(wanted);
    for (const box of boxes) box.firstChild.checked = wanted.models.includes(Number(box.firstChild.value));
    pictures.forEach((button, number) => button.setAttribute("aria-pressed", wanted.image === `example-${number}`));
    if (key === shown && view) return view.set(pixel);
    const own = ++turn;
    problem.replaceChildren();
    try {
      const example = /^example-(\d+)$/.exec(wanted.image);
      const image = example ? (await postJSON(`/api/label/examples/${example[1]}`)).key : wanted.image;
      if (own !== turn) return;
      const started = await postJSON("/api/attention/jobs", { image, models: wanted.models });
      const job = await follow(started, (news) => {
        if (own !== turn) return cancel(news).catch(() => {});
        const stop = element("button", { type: "button", onclick: () => cancel(news) }, "Cancel");
        status.replaceChildren(news.state === "waiting" ? "Waiting for another job… " : `Looking at ${news.message}… `, stop);
      });
      if (own !== turn) return;
      status.replaceChildren(job.state === "cancelled" ? "Cancelled." : job.result.note);
      if (job.state === "cancelled") return;
      place.replaceChildren(element("div"));
      const source = {
        ...job.result,
        image: `/api/attention/records/${job.key}/picture.jpg`,
        weights: (stage, [y, x]) => fetchWeights(job.key, stage, x, y),
      };
      view = await mountAttention(place.firstChild, source, pixel, remember);
      shown = key;
    } catch (error) {
      if (own !== turn) return;
      status.replaceChildren();
      showError(problem, error);
    }
  }

  function remember(state) {
    pixel = state;
    if (!location.hash.startsWith("#attention")) return;
    const { x, y, stage, head } = state;
    const more = head < 0 ? "" : `&head=${head + 1}`;
    const address = `models=${wanted.models.join(",")}&image=${wanted.image}&x=${x}&y=${y}&stage=${stage + 1}${more}`;
    history.replaceState(null, "", `#attention?${address}`);
  }

  return {
    show(parameters) {
      const models = (parameters.get("models") ?? "").split(",").filter((key) => /^\d+$/.test(key)).map(Number);
      const known = models.filter((key) => usable.some((model) => model.key === key)).slice(0, MOST_MODELS);
      if (known.length) wanted.models = known;
      if (/^(example-)?\d+$/.test(parameters.get("image") ?? "")) wanted.image = parameters.get("image");
      for (const [name, shift] of [["x", 0], ["y", 0], ["stage", 1], ["head", 1]]) {
        if (/^\d+$/.test(parameters.get(name) ?? "")) pixel[name] = Number(parameters.get(name)) - shift;
      }
      if (parameters.has("x") && !parameters.has("head")) pixel.head = -1;
      refresh();
    },
  };
}

async function fetchWeights(key, stage, x, y) {
  const found = await getJSON(`/api/attention/records/${key}/weights?stage=${stage}&x=${x}&y=${y}`);
  const numbers = (text) => text && new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  for (const panel of found.models.flatMap((model) => model.panels)) {
    for (const name of ["row", "column", "weights"]) panel[name] = numbers(panel[name]);
  }
  return found;
}
