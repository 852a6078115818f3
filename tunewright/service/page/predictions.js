// Classifiers: what the base and the tuned model say of a text or an image, as bars.

import { post } from "./api.js";
import { busy, el, field } from "./dom.js";
import { dropzone } from "./dropzone.js";
import { showError } from "./say.js";
import { Sides } from "./sides.js";

const MOST_BARS = 10;

export function room(signal) {
  const text = el("textarea", { rows: "3" });
  const picture = el("div");
  const failed = el("div");
  let image = null;
  const take = async (file) => {
    image = await base64(file);
    picture.replaceChildren(el("p.hint", `The image ${file.name} is asked about.`));
  };
  text.addEventListener("input", () => {
    image = null;
    picture.replaceChildren();
  });
  const answer = async (model, input, place, over) => {
    const { data } = await post("/v1/predictions", { model, input: [input] }, { signal: over });
    place.replaceChildren(bars(data[0]));
  };
  const sides = new Sides(answer, signal);
  const send = el("button.primary", { type: "submit" }, "Classify");
  const submit = (event) => {
    event.preventDefault();
    const empty = !image && !text.value.trim();
    showError(failed, empty ? { message: "Write a text, or choose an image." } : null, "Nothing was sent");
    if (!empty) busy(send, () => sides.ask(image ?? text.value));
  };
  const node = el("div",
    el("form.form", { onsubmit: submit }, el("div.pair", field("Text", text), el("div.field", el("span.label", "or an image"), dropzone("Image", take), picture)),
      el("div.buttons", send), failed),
    sides.node);
  return { node, sides };
}

/** The probabilities of a prediction, the likeliest first; what else it says as text. */
function bars(found) {
  const pairs = Object.entries(found.probabilities ?? found.scores ?? {}).sort((a, b) => b[1] - a[1]).slice(0, MOST_BARS);
  if (!pairs.length) return el("p", String(found.label ?? found.value ?? JSON.stringify(found)));
  const one = ([label, share], index) => el(index ? "div.bar" : "div.bar.first", el("span", label), el("span", share.toFixed(3)),
    el("progress", { max: 1, value: share, "aria-label": `${label}: ${share.toFixed(3)}` }));
  return el("div.bars", pairs.map(one));
}

function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => done(reader.result.split(",")[1]));
    reader.addEventListener("error", () => failed(reader.error));
    reader.readAsDataURL(file);
  });
}
