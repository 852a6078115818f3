// Curves that grow while a job runs. Which ones there are follows from what its events tell.

import { el, fresh, svg } from "./dom.js";
import { figure } from "./format.js";

const WIDTH = 560, HEIGHT = 250, LEFT = 54, RIGHT = 548, TOP = 12, BOTTOM = 216;
const MOST_POINTS = 400;

/** [title, [[name in the events, name of the line], …]] */
const CHARTS = [
  ["Loss", [["train_loss", "training"], ["valid_loss", "validation"]]],
  ["Accuracy", [["train_mean_token_accuracy", "training"], ["valid_mean_token_accuracy", "validation"]]],
  ["Reward", [["train_mean_reward", "training"], ["valid_mean_reward", "validation"]]],
  ["KL to the base", [["train_mean_kl", "training"], ["valid_mean_kl", "validation"]]],
  ["Margin between answers", [["train_mean_margin", "training"], ["valid_mean_margin", "validation"]]],
];

/** Keeps figures by step, and draws at most once a frame. */
export class Curves {
  constructor() {
    this.rows = new Map();
    this.node = el("div.charts");
    this.table = el("div");
    this.drawn = new Map();
    this.waiting = false;
  }

  add(data) {
    this.rows.set(data.step, { ...this.rows.get(data.step), ...data });
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const rows = [...this.rows.values()].sort((a, b) => a.step - b.step);
    for (const [title, names] of CHARTS) {
      const lines = names.map(([key, name], index) => ({ name, index, points: pointsOf(rows, key) }));
      const present = lines.filter((line) => line.points.length);
      if (!present.length) continue;
      if (!this.drawn.has(title)) this.drawn.set(title, this.node.appendChild(el("figure.chart")));
      fill(this.drawn.get(title), title, present);
    }
  }

  /** The figures as a table, for those who would rather read them. */
  values() {
    const keys = CHARTS.flatMap(([title, names]) => names.map(([key, name]) => [key, `${title}, ${name}`]));
    const rows = [...this.rows.values()].sort((a, b) => a.step - b.step);
    const present = keys.filter(([key]) => rows.some((row) => Number.isFinite(row[key])));
    const head = el("tr", el("th", { scope: "col" }, "Step"), present.map(([, name]) => el("th", { scope: "col" }, name)));
    const line = (row) => el("tr", el("th", { scope: "row" }, row.step),
      present.map(([key]) => el("td", Number.isFinite(row[key]) ? figure(row[key]) : "")));
    return el("div.scroll", { tabindex: "0", role: "region", "aria-label": "Figures of each step" },
      el("table", el("thead", head), el("tbody", rows.map(line))));
  }
}

function pointsOf(rows, key) {
  const found = rows.filter((row) => Number.isFinite(row[key])).map((row) => [row.step, row[key]]);
  return found.length > MOST_POINTS ? thinned(found) : found;
}

/** As many means as fit into the picture. */
function thinned(points) {
  const size = Math.ceil(points.length / MOST_POINTS);
  const mean = (group, at) => group.reduce((sum, point) => sum + point[at], 0) / group.length;
  const groups = Array.from({ length: Math.ceil(points.length / size) }, (_, n) => points.slice(n * size, (n + 1) * size));
  return groups.map((group) => [mean(group, 0), mean(group, 1)]);
}

function fill(chart, title, lines) {
  const id = chart.dataset.id || (chart.dataset.id = fresh("curve"));
  const all = lines.flatMap((line) => line.points);
  const x = scale(Math.min(...all.map(([step]) => step)), Math.max(...all.map(([step]) => step)), LEFT, RIGHT);
  const ticks = niceTicks(Math.min(...all.map(([, value]) => value)), Math.max(...all.map(([, value]) => value)));
  const y = scale(ticks[0], ticks.at(-1), BOTTOM, TOP);
  chart.replaceChildren(
    el("figcaption", { id }, el("h3", title), el("ul.legend", lines.map(key))),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": id, "aria-describedby": `${id}-text` },
      ticks.map((value) => horizontal(value, y)), stepMarks(x), lines.map((line) => drawn(line, x, y))),
    el("p.summary", { id: `${id}-text` }, lines.map(summary).join(" ")),
  );
}

function key(line) {
  const sample = svg(`svg.line-${line.index}`, { viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("path.line", { d: "M1 4H23" }));
  return el("li", sample, line.name);
}

function drawn({ index, points }, x, y) {
  const path = points.map(([step, value], n) => `${n ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const [step, value] = points.at(-1);
  return svg(`g.line-${index}`, svg("path.line", { d: path }), svg("circle", { cx: x(step), cy: y(value), r: 3.5 }));
}

function horizontal(value, y) {
  return [svg("path.grid", { d: `M${LEFT} ${y(value)}H${RIGHT}` }), svg("text.y", { x: LEFT - 8, y: y(value) }, figure(value))];
}

function stepMarks(x) {
  const [low, high] = x.domain;
  const steps = low === high ? [low] : niceTicks(low, high).filter((step) => step >= low && step <= high && Number.isInteger(step));
  return [svg("text.x-name", { x: LEFT - 16, y: BOTTOM + 24 }, "step"), steps.map((step) => svg("text.x", { x: x(step), y: BOTTOM + 24 }, step))];
}

function summary({ name, points }) {
  const [from, to] = [points[0], points.at(-1)];
  const word = name[0].toUpperCase() + name.slice(1);
  if (points.length === 1) return `${word}: ${figure(to[1])} at step ${Math.round(to[0])}.`;
  return `${word}: from ${figure(from[1])} to ${figure(to[1])} at step ${Math.round(to[0])}.`;
}

function scale(low, high, from, to) {
  const place = (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
  return Object.assign(place, { domain: [low, high] });
}

/** Round numbers from at or below `low` to at or above `high`: 1, 2 or 5 times a power of ten apart. */
export function niceTicks(low, high) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const apart = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= 5);
  const first = Math.floor(low / apart), last = Math.max(first + 1, Math.ceil(high / apart));
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * apart).toPrecision(12)));
}
