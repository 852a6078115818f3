// A model beside its base on the same question, and everything between the two: α in the name that is asked.

import { el } from "./dom.js";
import { listed, modelPicker } from "./modelpicker.js";
import { baseOf, isTuned, splitAlpha } from "./names.js";
import * as chat from "./chat.js";
import * as images from "./images.js";
import * as predictions from "./predictions.js";

const WAYS = { chat: ["Chat", chat], predictions: ["Classify", predictions], images: ["Images", images] };
const WAY_OF = { "text-generation": "chat", "text-to-image": "images" };

export async function show(main, { query, signal }) {
  const models = await listed(signal);
  main.append(el("h1", { tabindex: "-1" }, "Playground"), new Playground(models, query.get("model"), signal).node);
}

class Playground {
  constructor(models, wanted, signal) {
    Object.assign(this, { signal, rooms: {}, tasks: Object.fromEntries((models ?? []).map((one) => [one.id, one.task])) });
    this.picker = modelPicker(models, { name: "Model", wanted, changed: () => this.drawWay(), on: "input", tunedFirst: true });
    this.ways = el("div.choices");
    this.room = el("div");
    this.node = el("div.form", el("div.pair", this.picker.nodes), this.ways, this.room);
    this.drawWay();
  }

  /** The way of asking that fits the model, where its task is known; otherwise the user chooses. */
  drawWay() {
    const task = this.tasks[splitAlpha(this.picker.value)[0]];
    this.way = task ? (WAY_OF[task] ?? "predictions") : (this.way ?? "chat");
    const one = ([way, [name]]) => el("button", { type: "button", "aria-pressed": String(way === this.way), onclick: () => this.choose(way) }, name);
    this.ways.replaceChildren(...(task ? [] : Object.entries(WAYS).map(one)));
    this.draw();
  }

  choose(way) {
    this.way = way;
    for (const node of this.ways.children) node.setAttribute("aria-pressed", String(node.textContent === WAYS[way][0]));
    this.draw();
  }

  /** A form stays, with what was typed into it, when another model is chosen. */
  draw() {
    const [model, alpha] = splitAlpha(this.picker.value);
    const room = (this.rooms[this.way] ??= WAYS[this.way][1].room(this.signal));
    room.sides.of(model, isTuned(model) ? baseOf(model) : null, alpha);
    if (room.node !== this.room.firstChild) this.room.replaceChildren(room.node);
    this.ways.hidden = !model || !this.ways.children.length;
    this.room.hidden = !model;
  }
}
