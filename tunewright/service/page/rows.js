// A file of examples, looked at before it is used: how many rows, which lines are bad, and how the first ones are read.
// The server looks again, and at more; what is found here is found before anything is sent.

import { lines } from "./lines.js";

const SHOWN = 3;
const MOST_FAULTS = 20;
const LONGEST_LIST = 20_000_000; // bytes of one JSON list, which is read whole

/**
 * What is in a Blob, for a method of the API
 * → { kind: "jsonl" | "json" | "table" | "other", rows, faults: [{ line, message }], bad, first: [turns], columns }.
 * `bad`: how many rows have a fault; `columns`: of rows whose form only the server knows.
 */
export async function check(blob, method, signal) {
  const kind = kindOf(await blob.slice(0, 4096).text());
  const found = { kind, rows: 0, faults: [], bad: 0, first: [], columns: null };
  if (kind === "other" || (kind === "json" && blob.size > LONGEST_LIST)) return { ...found, kind: "other" };
  if (kind === "json") readList(await blob.text(), found, method);
  else await readLines(blob.stream(), found, method, signal);
  return found;
}

async function readLines(stream, found, method, signal) {
  let number = 0;
  for await (const line of lines(stream)) {
    signal?.throwIfAborted();
    number += 1;
    if (!line.trim()) continue;
    if (found.kind === "table") readTable(line, found, number);
    else readLine(line, number, found, method);
  }
}

/** JSON in one list cannot be read line by line. */
function readList(text, found, method) {
  try {
    JSON.parse(text).forEach((row, index) => readRow(row, `row ${index + 1}`, found, method));
  } catch (error) {
    fault(found, "", `it is no list of JSON objects: ${error.message}`);
  }
}

function kindOf(text) {
  const begin = text.replace(/^\uFEFF/, "").trimStart();
  if (begin.startsWith("[")) return "json";
  if (begin.startsWith("{")) return "jsonl";
  return /[\u0000-\u0008\uFFFD]/.test(begin) || begin.startsWith("PK") ? "other" : "table";
}

function readTable(line, found, number) {
  if (number === 1) found.columns = line.replace(/^\uFEFF/, "").split(line.includes("\t") ? "\t" : ",").map((name) => name.trim().replace(/^"|"$/g, ""));
  else found.rows += 1;
}

function readLine(line, number, found, method) {
  let row;
  try {
    row = JSON.parse(number === 1 ? line.replace(/^\uFEFF/, "") : line);
  } catch (error) {
    found.rows += 1;
    fault(found, `line ${number}`, `it is no JSON: ${error.message}`);
    return;
  }
  readRow(row, `line ${number}`, found, method);
}

function readRow(row, where, found, method) {
  found.rows += 1;
  if (row === null || typeof row !== "object" || Array.isArray(row)) {
    fault(found, where, "it must be a JSON object: { … }");
    return;
  }
  const read = READERS[method](row);
  if (read.fault) fault(found, where, read.fault);
  else if (!read.turns) found.columns ??= Object.keys(row);
  else if (found.first.length < SHOWN) found.first.push(read.turns);
}

function fault(found, line, message) {
  found.bad += 1;
  if (found.faults.length < MOST_FAULTS) found.faults.push({ line, message });
}

// How a row of each method is read: → { turns: [{ who, text, learned }] }, { fault }, or {} where only the server knows.

const READERS = { supervised, dpo, reinforcement };

function supervised(row) {
  if ("messages" in row) return dialogue(row.messages, true);
  if ("prompt" in row && "completion" in row) {
    return { turns: [...said("prompt", row.prompt), ...said("completion", row.completion, true)] };
  }
  if ("text" in row && "label" in row) return { turns: [turn("text", row.text), turn("label", row.label, true)] };
  return row.input && row.preferred_output ? { fault: "it is a pair of answers: choose the method for preferences" } : {};
}

function dpo(row) {
  if (!("input" in row) && !("preferred_output" in row)) {
    return "messages" in row && !("chosen" in row) ? { fault: "it has messages, but no preferred_output and non_preferred_output" } : {};
  }
  const missing = ["input", "preferred_output", "non_preferred_output"].find((name) => !(name in row));
  if (missing) return { fault: `${missing} is missing` };
  const asked = dialogue(row.input.messages, false);
  if (asked.fault) return { fault: `input.${asked.fault}` };
  return { turns: [...asked.turns, ...said("preferred", row.preferred_output, true), ...said("not preferred", row.non_preferred_output)] };
}

function reinforcement(row) {
  if (!("messages" in row)) return {};
  const read = dialogue(row.messages, false);
  if (read.fault) return read;
  if (row.messages.at(-1).role !== "user") return { fault: "the last message must be the user's: the model answers it" };
  const rest = Object.entries(row).filter(([name]) => name !== "messages" && name !== "tools");
  return { turns: [...read.turns, ...rest.map(([name, value]) => turn(`item.${name}`, value))] };
}

function dialogue(messages, isLearned) {
  if (!Array.isArray(messages) || !messages.length) return { fault: "messages must be a list that is not empty" };
  for (const [index, message] of messages.entries()) {
    const wrong = faultOf(message);
    if (wrong) return { fault: `messages[${index}] ${wrong}` };
  }
  const turns = messages.map((one) => turn(one.role, contentOf(one), isLearned && one.role === "assistant" && one.weight !== 0));
  return isLearned && !turns.some((one) => one.learned) ? { fault: "no assistant message is there to learn from" } : { turns };
}

function faultOf(message) {
  if (message === null || typeof message !== "object") return "must be an object";
  if (typeof message.role !== "string") return "has no role";
  const has = message.content ?? message.tool_calls ?? message.function_call;
  return has === undefined || has === null ? "has no content" : "";
}

function said(who, value, learned = false) {
  if (!Array.isArray(value)) return [turn(who, value, learned)];
  return value.map((one) => turn(who, typeof one === "object" && one ? contentOf(one) : one, learned));
}

function contentOf({ content, tool_calls, function_call }) {
  const parts = Array.isArray(content) ? content.map((part) => part?.text ?? `[${part?.type ?? "?"}]`).join("\n") : (content ?? "");
  const calls = tool_calls ?? function_call;
  return calls ? `${parts}\n${JSON.stringify(calls)}`.trim() : parts;
}

function turn(who, value, learned = false) {
  return { who, text: typeof value === "string" ? value : JSON.stringify(value), learned };
}
