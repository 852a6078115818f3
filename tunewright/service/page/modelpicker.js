// Which model: a base, or one that was tuned here and, where it has some, one of its checkpoints.

import { get } from "./api.js";
import { el, field, select } from "./dom.js";
import { baseOf, families, isTuned, modelOf, shortName, stepOf } from "./names.js";

const UNLISTED = "This key may not list models: it lacks the scope “models”. Type the name: ft:… of a tuned model, or a base’s.";

/** The models that the key may see; null where it may not list them. */
export async function listed(signal) {
  try {
    return (await get("/v1/models", { signal })).data;
  } catch (error) {
    if (error.status !== 403) throw error;
    return null;
  }
}

/**
 * A choice of one of `models`; where these are null, a name is typed. `wanted` is chosen first, listed or not.
 * → `nodes`, `control`, and `value`: the name. `changed()` is called where there is another one; of one that is typed,
 * with `on: "input"`, at each letter.
 */
export function modelPicker(models, options) {
  return models ? chosen(models, options) : typed(options);
}

function typed({ name, wanted, changed, on = "change" }) {
  const control = el("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", value: wanted ?? "", [`on${on}`]: changed });
  return { nodes: [field(name, control, UNLISTED)], control, get value() { return control.value.trim(); } };
}

function chosen(models, { name, hint, wanted, changed, tunedFirst = false }) {
  const isUnlisted = wanted && !models.some((one) => one.id === wanted); // another tenant's, or one that is gone
  const all = isUnlisted ? [...models, { id: wanted, created: 0 }] : models;
  const tuned = new Map(families(all).map((family) => [family.id, family]));
  const groups = {
    "Tuned here": [...tuned.keys()].map((id) => [id, id === modelOf(wanted ?? "") && isUnlisted ? id : labelOf(id)]),
    Bases: all.map((one) => one.id).filter((id) => !isTuned(id)),
  };
  const step = select([], "", changed);
  const steps = field("Checkpoint", step);
  const draw = (id) => {
    const family = tuned.get(control.value);
    step.replaceChildren(...(family ? versions(family, id) : []));
    steps.hidden = !family?.checkpoints.length;
  };
  const control = select(tunedFirst ? groups : { Bases: groups.Bases, "Tuned here": groups["Tuned here"] }, wanted && modelOf(wanted), () => {
    draw();
    changed();
  });
  draw(wanted);
  return { nodes: [field(name, control, hint), steps], control, get value() { return step.value || control.value; } };
}

const labelOf = (id) => `${shortName(id)}, from ${baseOf(id)} (${id.split(":").at(-1)})`;

function versions({ model, checkpoints }, wanted) {
  const one = ({ id }, text) => el("option", { value: id, selected: id === wanted }, text);
  return [model && one(model, "the model at the end"), ...checkpoints.map((each) => one(each, `step ${stepOf(each.id)}`))].filter(Boolean);
}
