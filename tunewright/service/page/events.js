// What happened to a job, newest first.

import { el, fresh } from "./dom.js";
import { clockTime, when } from "./format.js";
import { say } from "./say.js";

const MOST = 500;
const WORDS = { warn: "Warning", error: "Error" };

export class Events {
  constructor() {
    const id = fresh("events");
    this.list = el("ol.events", { "aria-labelledby": id, tabindex: "0" });
    const everything = el("input", { type: "checkbox", onchange: (event) => this.list.classList.toggle("all", event.target.checked) });
    this.node = el("section", el("div.headline", el("h2", { id }, "Events"), el("label.choice", everything, "Each step too")), this.list);
    this.began = Date.now() / 1000;
  }

  add(event) {
    const word = WORDS[event.level];
    const time = el("time", { datetime: new Date(event.created_at * 1000).toISOString(), title: when(event.created_at) }, clockTime(event.created_at));
    this.list.prepend(el(`li.${event.level}.${event.type}`, time, el("span", word && el("b", `${word}: `), event.message)));
    if (this.list.children.length > MOST) this.drop(event.type === "metrics" ? ".metrics" : "li");
    // what happened before this page was opened is read, not called out
    if (event.type === "message" && event.created_at >= this.began) say(event.message, event.level === "error");
  }

  drop(kind) {
    [...this.list.querySelectorAll(kind)].at(-1)?.remove();
  }
}
