// Where a job stands, in words and with a sign, and what can be done with it there.

import { el } from "./dom.js";

const WORDS = {
  validating_files: ["◌", "Checking files"],
  queued: ["○", "Waiting"],
  running: ["▶", "Running"],
  pausing: ["▷", "Pausing"],
  paused: ["‖", "Paused"],
  succeeded: ["✓", "Succeeded"],
  failed: ["✕", "Failed"],
  cancelled: ["–", "Cancelled"],
};

export const hasEnded = (status) => ["succeeded", "failed", "cancelled"].includes(status);
export const statusWord = (status) => WORDS[status]?.[1] ?? status;

export function badge(status) {
  const [sign, word] = WORDS[status] ?? ["?", status];
  return el(`span.status.${status}`, el("span", { "aria-hidden": "true" }, sign), word);
}

/** Buttons that a job in this status has: [what the API calls it, the button's name]. */
export function actions(status) {
  if (hasEnded(status)) return [];
  const found = [["cancel", "Cancel"]];
  if (["validating_files", "queued", "running"].includes(status)) found.unshift(["pause", "Pause"]);
  if (status === "paused") found.unshift(["resume", "Resume"]);
  return found;
}

/** How a job is called: by its suffix, or by what it begins from. */
export const titleOf = (job) => job.user_provided_suffix || job.fine_tuned_model?.split(":")[3] || job.model;
