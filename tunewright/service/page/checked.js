// What the check of a file found, shown.

import { el } from "./dom.js";
import { count, counted } from "./format.js";

/** `found` is what `check` of rows.js gives. */
export function found(result) {
  return [verdict(result), faults(result), result.columns && columns(result), ...samples(result)].filter(Boolean);
}

function verdict({ kind, rows, bad, columns: unknown }) {
  if (kind === "other") return el("p", "This is no text with a row on each line. The server reads it when it is uploaded.");
  if (!rows) return el("p.notice.worse", "There are no rows in this file.");
  if (bad) return el("p", el("b", `${count(bad)} of ${counted(rows, "row")} cannot be read.`));
  return el("p", el("b", `${counted(rows, "row")}.`), unknown ? null : " Each can be read.");
}

function faults({ faults: all, bad }) {
  if (!all.length) return null;
  const more = bad > all.length && el("li", `and ${count(bad - all.length)} more`);
  const one = ({ line, message }) => el("li", line && el("b", `${line[0].toUpperCase()}${line.slice(1)}: `), message);
  return el("div.notice.worse", el("h3", "Mend these lines"), el("ul", all.map(one), more));
}

function columns({ columns: names }) {
  return el("p.note", `The server decides how rows with ${names.slice(0, 12).join(", ")} are read, by the base.`);
}

function samples({ first }) {
  if (!first.length) return [];
  const learned = first.some((turns) => turns.some((one) => one.learned));
  return [
    el("h3", "The first rows, as they are read"),
    learned && el("p.hint", el("mark", "Marked"), " text is what the model learns to say."),
    ...first.map((turns) => el("dl.sample", turns.map(turnShown))),
  ];
}

function turnShown({ who, text, learned }) {
  return el("div.turn", el("dt", who), el("dd", learned ? el("mark", text) : text));
}
