// A model beside its base on the same question, and everything between the two: α in the name that is asked.

import { get } from "./api.js";
import { el, field, select } from "./dom.js";
import { baseOf, isTuned, sorted } from "./names.js";
import * as chat from "./chat.js";
import * as images from "./images.js";
import * as predictions from "./predictions.js";

const WAYS = { chat: ["Chat", chat], predictions: ["Classify", predictions], images: ["Images", images] };
const WAY_OF = { "text-generation": "chat", "text-to-image": "images" };

export async function show(main, { query, signal }) {
  const { data } = await get("/v1/models", { signal });
  const tuned = sorted(data.filter((one) => isTuned(one.id))).map((one) => one.id);
  const bases = data.map((one) => one.id).filter((id) => !isTuned(id));
  const wanted = query.get("model");
  if (wanted && isTuned(wanted) && !tuned.includes(wanted)) tuned.push(wanted); // another tenant's, which may be used
  const tasks = Object.fromEntries(data.map((one) => [one.id, one.task]));
  main.append(el("h1", { tabindex: "-1" }, "Playground"), new Playground(tuned, bases, tasks, wanted, signal).node);
}

class Playground {
  constructor(tuned, bases, tasks, wanted, signal) {
    Object.assign(this, { tasks, signal });
    this.model = select({ "Tuned here": tuned, Bases: bases }, wanted ?? tuned[0], () => this.drawWay());
    this.ways = el("div.choices");
    this.room = el("div");
    this.node = el("div.form", el("div.pair", field("Model", this.model)), this.ways, this.room);
    this.drawWay();
  }

  /** The way of asking that fits the model, where its task is known; otherwise the user chooses. */
  drawWay() {
    const task = this.tasks[this.model.value];
    this.way = task ? (WAY_OF[task] ?? "predictions") : (this.way ?? "chat");
    const one = ([way, [name]]) => el("button", { type: "button", "aria-pressed": String(way === this.way), onclick: () => this.choose(way) }, name);
    this.ways.replaceChildren(...(task ? [] : Object.entries(WAYS).map(one)));
    this.ways.hidden = Boolean(task);
    this.draw();
  }

  choose(way) {
    this.way = way;
    for (const node of this.ways.children) node.setAttribute("aria-pressed", String(node.textContent === WAYS[way][0]));
    this.draw();
  }

  draw() {
    this.leaving?.abort();
    this.leaving = new AbortController();
    this.signal.addEventListener("abort", () => this.leaving.abort(), { once: true });
    const model = this.model.value;
    this.room.replaceChildren(WAYS[this.way][1].room(model, isTuned(model) ? baseOf(model) : null, this.leaving.signal));
  }
}
