// The server's own check of a job that has not been started.

import { post } from "./api.js";
import { el } from "./dom.js";

export async function askServer(body, place, signal) {
  place.replaceChildren(el("p.hint", "The server reads the file …"));
  const { faults } = await post("/v1/fine_tuning/alpha/check", body, { signal });
  if (signal.aborted) return;
  place.replaceChildren(faults.length ? faulty(faults) : el("p.notice.better", "✓ The server has read the file: a job can start with it."));
}

function faulty(faults) {
  const one = ({ message, param }) => el("li", param && el("b", `${param}: `), el("span", message));
  return el("div.notice.worse", el("h3", "The server refuses a job with this"), el("ul", faults.map(one)));
}
