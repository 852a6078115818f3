// Two answers beside each other: the base's, and the tuned model's at an α.

import { el, fresh } from "./dom.js";
import { say, showError } from "./say.js";

/**
 * `answer(name, question, place, signal)` asks the model `name` and fills `place`.
 * → `node`; `of(model, base)` says who is asked, `ask(question)` asks both. The slider asks the tuned model the same
 * question again, whatever stands in the form meanwhile: only so α is all that differs.
 */
export class Sides {
  constructor(answer, signal) {
    Object.assign(this, { answer, signal, known: null });
    this.node = el("div");
  }

  /** What another model is still saying is over. */
  of(model, base, alpha = 1) {
    const known = `${model}@${alpha}`;
    if (known === this.known) return;
    this.leaving?.abort();
    this.leaving = new AbortController();
    const signal = AbortSignal.any([this.signal, this.leaving.signal]);
    Object.assign(this, { known, model, baseName: base, question: null });
    this.alpha = base ? slider(alpha, () => this.question && this.tuned.ask(this.name, this.question)) : null;
    this.tuned = new Side(base ? "Tuned" : "Answer", this.answer, signal, "tuned");
    this.base = base ? new Side("Base", this.answer, signal) : null;
    this.node.replaceChildren(...[this.alpha?.node, el("div.sides", this.base?.node, this.tuned.node)].filter(Boolean));
  }

  /** What is asked: `ft:…` alone is α = 1. */
  get name() {
    const alpha = this.alpha ? Number(this.alpha.input.value) : 1;
    return alpha === 1 ? this.model : `${this.model}@${Number(alpha.toFixed(2))}`;
  }

  async ask(question) {
    this.question = question;
    await Promise.all([this.base?.ask(this.baseName, question), this.tuned.ask(this.name, question)]);
  }
}

function slider(alpha, changed) {
  const step = Math.round(alpha * 100) % 5 ? "0.01" : "0.05";
  const input = el("input", { type: "range", min: "0", max: "1", step, id: fresh("alpha") });
  const output = el("output", { for: input.id });
  const tell = () => {
    output.textContent = Number(input.value).toFixed(2);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.value = alpha;
  tell();
  input.addEventListener("input", tell);
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
  async ask(name, question) {
    this.asking?.abort();
    this.asking = new AbortController();
    const signal = AbortSignal.any([this.asking.signal, this.outer]);
    this.name.textContent = name;
    this.place.replaceChildren();
    this.place.classList.add("waiting");
    try {
      await this.answer(name, question, this.place, signal);
      say(`${this.title}: the answer is there.`);
    } catch (error) {
      if (!signal.aborted) showError(this.place, error, "No answer");
    } finally {
      if (!signal.aborted) this.place.classList.remove("waiting");
    }
  }
}
