// Images: the same prompt and the same noise, drawn by the base and by the tuned model.

import { post } from "./api.js";
import { busy, el, field } from "./dom.js";
import { showError } from "./say.js";
import { Sides } from "./sides.js";

export function room(signal) {
  const prompt = el("textarea", { rows: "2" });
  const seed = el("input", { type: "number", min: "0", step: "1", value: "0" });
  const steps = el("input", { type: "number", min: "1", max: "1000", step: "1", value: "30" });
  const guidance = el("input", { type: "number", min: "1", max: "100", step: "0.5", value: "7.5" });
  const failed = el("div");
  const question = () => ({ prompt: prompt.value, seed: Number(seed.value), steps: Number(steps.value), guidance: Number(guidance.value) });
  const answer = async (model, asked, place, over) => {
    const { data } = await post("/v1/images/generations", { ...asked, model }, { signal: over });
    place.replaceChildren(...data.map((one) => el("img", { src: `data:image/png;base64,${one.b64_json}`, alt: `Drawn for: ${asked.prompt}` })));
  };
  const sides = new Sides(answer, signal);
  const draw = el("button.primary", { type: "submit" }, "Draw");
  const submit = (event) => {
    event.preventDefault();
    showError(failed, prompt.value.trim() ? null : { message: "Write what is to be drawn." }, "Nothing was sent");
    if (prompt.value.trim()) busy(draw, () => sides.ask(question()));
  };
  const node = el("div",
    el("form.form", { onsubmit: submit }, field("Prompt", prompt),
      el("div.pair.small", field("Seed", seed, "The same seed, the same noise."), field("Steps", steps), field("Guidance", guidance)),
      el("div.buttons", draw), failed),
    sides.node);
  return { node, sides };
}
