// Layers of labels: canvases for a photograph, tiles for a scene.

export const fileOf = (job, number, name) => `/api/label/jobs/${job.key}/${number}/files/${name}`;

export const tilesOf = (job, number, layer, version) => ({
  name: `${layer} ${number} ${job.key}`,
  url: (z, x, y) => `/api/label/jobs/${job.key}/${number}/${layer}/${z}/${x}/${y}.png?v=${version}`,
  version,
});

// Read a photograph's classes and probabilities, and draw the classes in their colours.
export async function readValues(job, number, model) {
  const answer = await fetch(fileOf(job, number, "values.png"));
  if (!answer.ok) throw new Error("The result is no longer kept: label the image again.");
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(await answer.blob(), exact);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const values = context.getImageData(0, 0, canvas.width, canvas.height);
  const drawn = new ImageData(canvas.width, canvas.height);
  const colors = model.classes.map(({ color }) => [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16)));
  for (let place = 0; place < values.data.length; place += 4) {
    drawn.data.set(colors[values.data[place] + 256 * values.data[place + 1]], place);
    drawn.data[place + 3] = 255;
  }
  context.putImageData(drawn, 0, 0);
  return {
    canvas,
    at(across, down) { // shares of width and height
      const place = 4 * (Math.floor(down * canvas.height) * canvas.width + Math.floor(across * canvas.width));
      return { label: values.data[place] + 256 * values.data[place + 1], probability: values.data[place + 2] / 255 };
    },
  };
}
