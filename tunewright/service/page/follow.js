// A job's events as they happen, over broken connections.

import { stream } from "./api.js";

const LONGEST_WAIT = 15;

/**
 * Tell `heard` of every event once, the oldest first, until the job has ended or the view is left.
 * `lost` is told the seconds until the next try after a connection broke, and null when there is one again.
 */
export async function follow(id, heard, lost, signal) {
  const known = new Set();
  let wait = 1;
  while (!signal.aborted) {
    try {
      // a stream begins with the first event each time
      for await (const event of stream("GET", `/v1/fine_tuning/jobs/${id}/events?stream=true`, undefined, signal)) {
        if (wait > 1) lost(null);
        wait = 1;
        if (!known.has(event.id)) heard(event);
        known.add(event.id);
      }
      return;
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      lost(wait);
      await pause(wait, signal);
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  }
}

function pause(seconds, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}
