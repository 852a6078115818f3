// The server's own check of a job that has not been started.

import { post } from "./api.js";
import { el } from "./dom.js";

/** Ask, and show in `place` what the server says. Whether a job can start so. */
export async function askServer(body, place, signal) {
  place.replaceChildren(el("p.hint", "The server reads the file …"));
  const told = await post("/v1/fine_tuning/alpha/check", body, { signal });
  if (!signal.aborted) place.replaceChildren(shown(told));
  return !told.faults.length;
}

function shown({ read, faults }) {
  if (faults.length) return faulty(faults);
  return read
    ? el("p.notice.better", "✓ The server has read the file: a job can start with it.")
    : el("p.notice", "The file is too large to be read while you wait: the job reads it before it trains.");
}

function faulty(faults) {
  const one = ({ message, param }) => el("li", param && el("b", `${param}: `), el("span", message));
  return el("div.notice.worse", el("h3", "The server refuses a job with this"), el("ul", faults.map(one)));
}
