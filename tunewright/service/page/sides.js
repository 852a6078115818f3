// Two answers beside each other: the base's, and the tuned model's at an α.

import { el, fresh } from "./dom.js";
import { say, showError } from "./say.js";

/**
 * `answer(name, place, signal)` asks the model `name` and fills `place`; `ready()` says whether there is something to ask.
 * → `node`, and `ask()` for both sides. The slider asks the tuned model again, where it has been asked before.
 */
export class Sides {
  constructor(model, base, answer, signal) {
    Object.assign(this, { model, answer, asked: false });
    this.alpha = base ? slider(() => this.asked && this.tuned.ask(this.name)) : null;
    this.tuned = new Side(base ? "Tuned" : "Answer", answer, signal, "tuned");
    this.base = base ? new Side("Base", answer, signal) : null;
    this.baseName = base;
    this.node = el("div", this.alpha?.node, el("div.sides", this.base?.node, this.tuned.node));
  }

  /** What is asked: `ft:…` alone is α = 1. */
  get name() {
    const alpha = this.alpha ? Number(this.alpha.input.value) : 1;
    return alpha === 1 ? this.model : `${this.model}@${Number(alpha.toFixed(2))}`;
  }

  async ask() {
    this.asked = true;
    await Promise.all([this.base?.ask(this.baseName), this.tuned.ask(this.name)]);
  }
}

function slider(changed) {
  const input = el("input", { type: "range", min: "0", max: "1", step: "0.05", value: "1", id: fresh("alpha") });
  const output = el("output", { for: input.id }, "1.00");
  input.addEventListener("input", () => {
    output.textContent = Number(input.value).toFixed(2);
    input.setAttribute("aria-valuetext", output.textContent);
  });
  let waiting = null;
  input.addEventListener("change", () => {
    clearTimeout(waiting); // an arrow key is pressed several times in a row
    waiting = setTimeout(changed, 300);
  });
  const node = el("div.alpha", el("label", { for: input.id }, "α: how much of the tuning"), el("span"), input, output,
    el("div.ends", el("span", "0: the base"), el("span", "1: tuned")));
  return { node, input };
}

class Side {
  constructor(title, answer, signal, kind = "base") {
    Object.assign(this, { title, answer, outer: signal });
    this.name = el("p.asked.mono");
    this.place = el("div.answer");
    const id = fresh("side");
    this.node = el(`section.side.${kind}`, { "aria-labelledby": id }, el("h2", { id }, title), this.name, this.place);
  }

  /** A new question ends what is still being said. */
  async ask(name) {
    this.asking?.abort();
    this.asking = new AbortController();
    const signal = AbortSignal.any([this.asking.signal, this.outer]);
    this.name.textContent = name;
    this.place.replaceChildren();
    this.place.classList.add("waiting");
    try {
      await this.answer(name, this.place, signal);
      say(`${this.title}: the answer is there.`);
    } catch (error) {
      if (!signal.aborted) showError(this.place, error, "No answer");
    } finally {
      if (!signal.aborted) this.place.classList.remove("waiting");
    }
  }
}
