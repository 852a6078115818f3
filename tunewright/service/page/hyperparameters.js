// The hyperparameters of each method: a number, or `auto`, which the run decides from its rows.

import { el, field } from "./dom.js";

const COMMON = {
  n_epochs: ["Epochs", "How often each row is seen, 1 to 50."],
  batch_size: ["Batch size", "Rows of one step, 1 to 256."],
  learning_rate_multiplier: ["Learning rate ×", "Above 1 learns faster, and less safely."],
};
const FURTHER = {
  supervised: {},
  dpo: { beta: ["Beta", "How close it stays to the base, up to 2."] },
  reinforcement: {
    compute_multiplier: ["Answers ×", "More answers to each prompt."],
    eval_interval: ["Evaluate every", "So many steps; needs a validation file."],
    eval_samples: ["Answers when evaluated", "To each prompt of the validation file."],
  },
};

/** What a hyperparameter is called here. */
export const nameOf = (name) => Object.assign({}, COMMON, ...Object.values(FURTHER))[name]?.[0] ?? name;

/** `fields.node`, and `fields.read()` → what was chosen, without what is auto. Raises { message, control }. */
export function hyperparameters(method, given = {}) {
  const inputs = new Map();
  const one = ([name, [title, hint]]) => {
    const chosen = Number.isFinite(given[name]) ? String(given[name]) : "auto";
    const input = el("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: chosen });
    inputs.set(name, { input, title });
    return field(title, input, hint);
  };
  const node = el("div.pair.small", Object.entries({ ...COMMON, ...FURTHER[method] }).map(one));
  return { node, inputs, read: () => read(inputs) };
}

function read(inputs) {
  const found = {};
  for (const [name, { input, title }] of inputs) {
    const text = input.value.trim();
    if (text === "" || text === "auto") continue;
    const number = Number(text);
    if (!Number.isFinite(number)) throw { message: `${title}: “${text}” is neither a number nor auto.`, control: input };
    found[name] = number;
  }
  return found;
}
