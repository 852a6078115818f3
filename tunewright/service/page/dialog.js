// Questions before something that cannot be undone.

import { el, fresh } from "./dom.js";

/** Ask; true where the answer is yes. The focus goes back to where it was. */
export function sure(question, detail, yes) {
  const id = fresh("question");
  const keep = el("button", { value: "" }, "Keep it");
  const act = el("button.danger", { value: "yes" }, yes);
  const box = el("dialog", { "aria-labelledby": id },
    el("form", { method: "dialog" }, el("h2", { id }, question), el("p", detail), el("div.buttons", keep, act)));
  document.body.append(box);
  box.showModal();
  keep.focus();
  return new Promise((done) =>
    box.addEventListener("close", () => {
      box.remove();
      done(box.returnValue === "yes");
    }),
  );
}
