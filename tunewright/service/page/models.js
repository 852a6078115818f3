// The bases of the service, and the models that were tuned here.

import { get, remove } from "./api.js";
import { sure } from "./dialog.js";
import { button, el } from "./dom.js";
import { when } from "./format.js";
import { baseOf, isTuned, shortName, sorted } from "./names.js";
import { say, showError } from "./say.js";
import { copier } from "./saving.js";

export async function show(main, { signal }) {
  const { data } = await get("/v1/models", { signal });
  const failed = el("div");
  const tuned = sorted(data.filter((one) => isTuned(one.id)));
  const bases = data.filter((one) => !isTuned(one.id));
  main.append(
    el("h1", { tabindex: "-1" }, "Models"), failed,
    el("section", el("h2", "Tuned here"),
      tuned.length ? el("ul.rows", tuned.map((one) => row(one, failed, signal))) : el("p.empty", "None yet. A job that has succeeded leaves one here.")),
    el("section", el("h2", "Bases"),
      el("p.note", "What jobs begin from. They lie in the folders that the service was started with."), el("ul.rows", bases.map(base))),
  );
}

function base(one) {
  return el("li.row", el("span.title", one.id), el("div.about", one.task && el("span", one.task)), el("div.aside",
    el("div.buttons", el("a.button", { href: `#/new?model=${encodeURIComponent(one.id)}`, "aria-label": `Tune ${one.id}` }, "Tune it"))));
}

function row(one, failed, signal) {
  const address = encodeURIComponent(one.id);
  const gone = button("Delete", () => drop(one, line, signal), { kind: "quiet", "aria-label": `Delete ${one.id}`, failed: (error) => showError(failed, error) });
  const line = el("li.row",
    el("span.title", shortName(one.id)),
    el("div.about", el("span.mono", one.id), el("span", `from ${baseOf(one.id)}`), el("span", when(one.created))),
    el("div.aside", el("div.buttons", copier(one.id, "Copy name"), gone,
      el("a.button", { href: `#/playground?model=${address}`, "aria-label": `Try ${one.id}` }, "Try it"))));
  return line;
}

async function drop(one, line, signal) {
  if (!(await sure("Delete this model?", `${one.id} answers no more. This cannot be undone.`, "Delete the model"))) return;
  await remove(`/v1/models/${encodeURIComponent(one.id)}`, { signal });
  const next = (line.nextElementSibling ?? line.previousElementSibling)?.querySelector("button");
  line.remove();
  say("The model is deleted.");
  (next ?? document.querySelector("h1")).focus();
}
