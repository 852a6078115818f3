// Questions before something that cannot be undone.

import { el, fresh } from "./dom.js";

/** Ask; true where the answer is yes. */
export async function sure(question, detail, yes) {
  return (await decide(question, detail, { yes })) === "yes";
}

/** Ask, with several ways to do it: { answer: the button's name } → the answer, or "" for none. The focus goes back to where it was. */
export function decide(question, detail, ways) {
  const id = fresh("question");
  const keep = el("button", { value: "" }, "Keep it");
  const acts = Object.entries(ways).map(([value, name]) => el("button.danger", { value }, name));
  const box = el("dialog", { "aria-labelledby": id },
    el("form", { method: "dialog" }, el("h2", { id }, question), el("p", detail), el("div.buttons", keep, acts)));
  document.body.append(box);
  box.showModal();
  keep.focus();
  return new Promise((done) =>
    box.addEventListener("close", () => {
      box.remove();
      done(box.returnValue);
    }),
  );
}
