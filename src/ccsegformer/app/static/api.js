// Requests to this page's own server, and following a job.

async function request(method, address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { method, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is ccsegformer app still running?");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const text = await answer.text();
  let detail = text || answer.statusText;
  try {
    detail = JSON.parse(text).detail;
  } catch {} // plain text
  throw new Error(typeof detail === "string" ? detail : "The server does not understand the request.");
}

export const getJSON = (address, options) => request("GET", address, options);
export const remove = (address) => request("DELETE", address);
export const postJSON = (address, value) =>
  request("POST", address, { headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
export const postBytes = (address, bytes, signal) => request("POST", address, { body: bytes, signal });

// Follow a job to its end. `onNews(job)` is called for each change; returns the job when it is done or cancelled.
export async function follow(job, onNews) {
  onNews(job);
  while (job.state === "waiting" || job.state === "running") {
    job = await getJSON(`/api/jobs/${job.key}?seen=${job.version}`);
    onNews(job);
  }
  if (job.state === "failed") throw new Error(job.message);
  return job;
}

export const cancel = (job) => remove(`/api/jobs/${job.key}`);
