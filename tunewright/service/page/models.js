// The bases of the service, and the models that were tuned here.

import { get, remove } from "./api.js";
import { decide, sure } from "./dialog.js";
import { button, el } from "./dom.js";
import { counted, when } from "./format.js";
import { baseOf, families, isTuned, shortName, stepOf } from "./names.js";
import { say, showError } from "./say.js";
import { copier } from "./saving.js";

export async function show(main, { signal }) {
  const { data } = await get("/v1/models", { signal });
  const failed = el("div");
  const tuned = families(data).map((family) => new Row(family, failed, signal).node);
  const bases = data.filter((one) => !isTuned(one.id));
  main.append(
    el("h1", { tabindex: "-1" }, "Models"), failed,
    el("section", el("h2", "Tuned here"),
      tuned.length ? el("ul.rows", tuned) : el("p.empty", "None yet. A job that has succeeded leaves one here.")),
    el("section", el("h2", "Bases"),
      el("p.note", "What jobs begin from. They lie in the folders that the service was started with."), el("ul.rows", bases.map(base))),
  );
}

function base(one) {
  const address = encodeURIComponent(one.id);
  return el("li.row", el("span.title", one.id), el("div.about", one.task && el("span", one.task)), el("div.aside", el("div.buttons",
    el("a.button", { href: `#/new?model=${address}`, "aria-label": `Tune ${one.id}` }, "Tune it"), tryIt(one.id))));
}

const tryIt = (id) => el("a.button", { href: `#/playground?model=${encodeURIComponent(id)}`, "aria-label": `Try ${id}` }, "Try it");

/** A model with its checkpoints, which are folded: a job may leave hundreds of them. */
class Row {
  constructor(family, failed, signal) {
    Object.assign(this, { family, failed, signal });
    this.node = el("li.row");
    this.draw();
  }

  draw() {
    const { id, model, checkpoints, newest } = this.family;
    this.node.replaceChildren(
      el("span.title", shortName(id)),
      el("div.about", el("span.mono", id), el("span", `from ${baseOf(id)}`), el("span", when(newest)), !model && el("span", "only checkpoints are there")),
      el("div.aside", el("div.buttons", model && copier(id, "Copy name"), this.gone(id, () => this.drop(), model ? "Delete" : "Delete all"), model && tryIt(id))),
      ...(checkpoints.length ? [this.fold()] : []));
  }

  /** Rows of checkpoints are made when somebody looks. */
  fold() {
    const list = el("ul.rows");
    const look = (event) => {
      this.isOpen = event.target.open;
      if (this.isOpen && !list.children.length) list.append(...this.family.checkpoints.map((one) => this.checkpoint(one)));
    };
    return el("details.under", { ontoggle: look, open: Boolean(this.isOpen) },
      el("summary", counted(this.family.checkpoints.length, "checkpoint"), el("span.sr", ` of ${shortName(this.family.id)}`)), list);
  }

  checkpoint(one) {
    return el("li.row", el("span.title", `Step ${stepOf(one.id)}`), el("div.about", el("span.mono", one.id)), el("div.aside",
      el("div.buttons", copier(one.id, "Copy name"), this.gone(one.id, () => this.dropOne(one)), tryIt(one.id))));
  }

  gone(id, act, name = "Delete") {
    return button(name, act, { kind: "quiet", "aria-label": `${name} ${id}`, failed: (error) => showError(this.failed, error) });
  }

  async drop() {
    const { id, model, checkpoints } = this.family;
    const number = counted(checkpoints.length, "checkpoint");
    const ways = { ...(model && { model: "Delete the model" }), ...(checkpoints.length && { all: model ? `Delete it with its ${number}` : `Delete ${number}` }) };
    const stay = model && checkpoints.length ? ` Its ${number} answer on unless they go too.` : "";
    const how = await decide(model ? "Delete this model?" : "Delete these checkpoints?", `${id} answers no more.${stay} This cannot be undone.`, ways);
    if (how) await this.delete([...(how === "all" ? checkpoints : []), ...(model ? [model] : [])], `${shortName(id)} is deleted.`);
  }

  async dropOne(one) {
    if (!(await sure("Delete this checkpoint?", `${one.id} answers no more. This cannot be undone.`, "Delete the checkpoint"))) return;
    await this.delete([one], "The checkpoint is deleted.");
  }

  /** One after another; what is gone is gone from the row too where a later one is refused. */
  async delete(doomed, told) {
    try {
      for (const one of doomed) {
        await remove(`/v1/models/${encodeURIComponent(one.id)}`, { signal: this.signal }).catch(unlessGone);
        if (one === this.family.model) this.family.model = null;
        else this.family.checkpoints = this.family.checkpoints.filter((other) => other !== one);
      }
      showError(this.failed, null);
      say(told);
    } finally {
      this.redraw();
    }
  }

  redraw() {
    const isEmpty = !this.family.model && !this.family.checkpoints.length;
    const next = isEmpty ? (this.node.nextElementSibling ?? this.node.previousElementSibling) : this.node;
    if (isEmpty) this.node.remove();
    else this.draw();
    (next?.querySelector("details[open] > summary") ?? next?.querySelector("button") ?? document.querySelector("h1")).focus();
  }
}

/** Somebody else deleted it meanwhile. */
function unlessGone(error) {
  if (error.status !== 404) throw error;
}
