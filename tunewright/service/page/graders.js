// The grader of a reinforcement job, as JSON: examples to begin with, and a place to try it.

import { post } from "./api.js";
import { button, el, field, select } from "./dom.js";
import { figure } from "./format.js";
import { showError } from "./say.js";

const EXAMPLES = {
  "The answer is exactly the reference": {
    type: "string_check", name: "exact", operation: "eq", input: "{{ sample.output_text }}", reference: "{{ item.answer }}",
  },
  "The answer has the reference in it": {
    type: "string_check", name: "contains", operation: "ilike", input: "{{ sample.output_text }}", reference: "{{ item.answer }}",
  },
  "The answer is near the reference": {
    type: "text_similarity", name: "near", evaluation_metric: "fuzzy_match", input: "{{ sample.output_text }}", reference: "{{ item.answer }}",
  },
};

const written = (grader) => JSON.stringify(grader, null, 2);

/** `editor.node`, `editor.read()` → the grader; `changed()` is called where there is another one. Raises { message, control }. */
export function graderEditor(given, signal, changed) {
  const text = el("textarea.code", { spellcheck: "false", rows: "9", onchange: changed, value: written(given ?? Object.values(EXAMPLES)[0]) });
  const example = select([["", "Choose one …"], ...Object.keys(EXAMPLES)], "", () => {
    if (!example.value) return;
    text.value = written(EXAMPLES[example.value]);
    changed();
  });
  const read = () => {
    try {
      return JSON.parse(text.value);
    } catch (error) {
      throw { message: `The grader is no JSON: ${error.message}`, control: text };
    }
  };
  const node = el("fieldset", el("legend", "Grader"), el("div.form",
    el("p.note", "It gives each answer of the model a number, and the model learns to get more. ",
      el("code", "item"), " is the row, ", el("code", "sample.output_text"), " the answer."),
    el("div.narrow", field("Begin with an example", example)), field("The grader, as JSON", text), trial(read, signal)));
  return { node, text, read };
}

function trial(read, signal) {
  const answer = el("input", { type: "text", autocomplete: "off", value: "4" });
  const item = el("input", { type: "text", autocomplete: "off", spellcheck: "false", value: '{"answer": "4"}' });
  const result = el("div", { "aria-live": "polite" });
  const failed = (error) => showError(result, error, "The grader cannot be used so");
  const run = async () => {
    const told = await post("/v1/fine_tuning/alpha/graders/run", { grader: read(), model_sample: answer.value, item: parsed(item) }, { signal });
    result.replaceChildren(graded(told));
  };
  return el("details", el("summary", "Try it on an answer"),
    el("div.pair", field("An answer", answer), field("Its row, as JSON", item)), button("Grade it", run, { failed }), result);
}

function graded({ reward, metadata }) {
  const wrong = Object.entries(metadata.errors).filter(([, said]) => said).map(([name, said]) => (said === true ? name.replaceAll("_", " ") : said));
  if (wrong.length) return el("p.notice.worse", "This answer could not be graded: ", wrong.join("; "), ".");
  return el("p.notice.better", "The grader works. This answer gets ", el("b", figure(reward)), ".");
}

function parsed(input) {
  try {
    return JSON.parse(input.value);
  } catch (error) {
    throw { message: `The row is no JSON: ${error.message}`, control: input };
  }
}
