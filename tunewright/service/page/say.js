// What screen readers are told, and errors that everybody sees.

import { el } from "./dom.js";

/** Say something politely; with `now`, at once. */
export function say(text, now = false) {
  const place = document.getElementById(now ? "warned" : "said");
  place.textContent = "";
  // the same text twice is only heard twice when it was away in between
  requestAnimationFrame(() => (place.textContent = text));
}

/** An error as the API worded it, with the field that it is about. */
export function notice(error, title = "That did not work") {
  return el("div.notice.worse", { role: "alert" }, el("h3", title), el("p", told(error)));
}

export function told(error) {
  const names = error.param && !error.message.includes(error.param);
  return names ? `${error.message} (${error.param})` : error.message;
}

/** Show an error in a place that is there for it; null empties it. */
export function showError(place, error, title) {
  place.replaceChildren(...(error ? [notice(error, title)] : []));
}
