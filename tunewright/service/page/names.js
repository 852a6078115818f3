// Names of models: `ft:BASE:TENANT:SUFFIX:JOB`, with `:ckpt-step-N` behind it for a checkpoint, and `@0.6` for an α.

const CHECKPOINT = /:ckpt-step-(\d+)$/;

export const isTuned = (name) => name.startsWith("ft:");
/** The base that a name names. */
export const baseOf = (name) => (isTuned(name) ? name.split(":")[1] : name);
/** The step of a checkpoint; null for the model that a job ended with. */
export const stepOf = (name) => (CHECKPOINT.test(name) ? Number(name.match(CHECKPOINT)[1]) : null);
/** The model that a checkpoint is one of. */
export const modelOf = (name) => name.replace(CHECKPOINT, "");
/** What a tuned model is called for short. */
export const shortName = (name) => name.split(":")[3] || baseOf(name);

/** `ft:…@0.6` → ["ft:…", 0.6]; a name without an α has 1. */
export function splitAlpha(name) {
  const [, model, alpha] = name.match(/^(.+)@(0(?:\.\d{1,2})?|1(?:\.0{1,2})?)$/) ?? [null, name, 1];
  return [model, Number(alpha)];
}

/**
 * What was tuned, each model with its checkpoints: → [{ id, model, checkpoints }], that of the newest job first, and
 * checkpoints from the last to the first. `model` is null where only checkpoints are there.
 */
export function families(models) {
  const found = new Map();
  for (const one of models.filter(({ id }) => isTuned(id))) {
    const id = modelOf(one.id);
    if (!found.has(id)) found.set(id, { id, model: null, checkpoints: [], newest: 0 });
    const family = found.get(id);
    family.newest = Math.max(family.newest, one.created);
    if (stepOf(one.id) === null) family.model = one;
    else family.checkpoints.push(one);
  }
  for (const { checkpoints } of found.values()) checkpoints.sort((a, b) => stepOf(b.id) - stepOf(a.id));
  return [...found.values()].sort((a, b) => b.newest - a.newest || a.id.localeCompare(b.id));
}
