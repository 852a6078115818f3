// Names of models: `ft:BASE:TENANT:SUFFIX:JOB`, with `:ckpt-step-N` behind it for a checkpoint, and `@0.6` for an α.

const CHECKPOINT = /:ckpt-step-(\d+)$/;

export const isTuned = (name) => name.startsWith("ft:");
/** The base that a name names. */
export const baseOf = (name) => (isTuned(name) ? name.split(":")[1] : name);
/** The step of a checkpoint; null for the model that a job ended with. */
export const stepOf = (name) => Number(name.match(CHECKPOINT)?.[1]) || null;

/** What a tuned model is called for short. */
export function shortName(name) {
  const word = name.split(":")[3] || baseOf(name);
  return stepOf(name) ? `${word}, step ${stepOf(name)}` : word;
}

/** Tuned models with those of the newest job first, each with its checkpoints behind it, from the last to the first. */
export function sorted(models) {
  const jobOf = (model) => model.id.replace(CHECKPOINT, "");
  const newest = new Map();
  for (const model of models) newest.set(jobOf(model), Math.max(model.created, newest.get(jobOf(model)) ?? 0));
  const place = (model) => stepOf(model.id) ?? Number.MAX_SAFE_INTEGER;
  const order = (a, b) => newest.get(jobOf(b)) - newest.get(jobOf(a)) || jobOf(a).localeCompare(jobOf(b)) || place(b) - place(a);
  return [...models].sort(order);
}
