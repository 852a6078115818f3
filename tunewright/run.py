"""A recipe becomes a run: a folder that says what was trained, on what, with which result, and how to load it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunewright.account import (
    describe,
    one_sided,
    place_of,
    refuse_changed,
    without_contrast,
    write_bad_rows,
    write_labeling,
)
from tunewright.artifacts.fingerprint import refuse_lost, refuse_other_weights
from tunewright.artifacts.load import allow_code
from tunewright.artifacts.prior import drawn_prior, stand_in
from tunewright.artifacts.samples import Sampler
from tunewright.artifacts.save import clear_drafts, save
from tunewright.artifacts.snapshots import Snapshots
from tunewright.artifacts.start import Start, keep_adapter
from tunewright.data.kinds import Prompt
from tunewright.data.rows import absolute
from tunewright.deciding import few_steps, refuse_endless_warmup, refuse_small_steps, rows_beyond_a_step
from tunewright.engine.device import computing
from tunewright.engine.job import Job, Rewards, Watcher
from tunewright.engine.learner import Learner
from tunewright.engine.log import peak_memory
from tunewright.engine.loop import Outcome, Step, ready
from tunewright.engine.loop import train as run_loop
from tunewright.engine.processes import Processes, join
from tunewright.engine.track import tracker
from tunewright.errors import OutputError
from tunewright.evaluation.evaluate import described, rewarded
from tunewright.evaluation.gallery import PICTURES, gallery
from tunewright.evaluation.pairing import BEFORE, changes, keep, kept
from tunewright.evaluation.report import write_page
from tunewright.evaluation.scores import Scores
from tunewright.folder import INFO, LOCK, RECIPE, Record, Run, occupied, refuse_used
from tunewright.head_first import refuse_idle, train_head
from tunewright.prepare import Prepared, prepare
from tunewright.recipe import PLACES, Recipe, differences, goes_on_as_it_began, lasting, located
from tunewright.rewards import critic_of, placed, rewards_of, try_out, untold_rules


def execute(recipe: Recipe, folder: Path, watchers: Sequence[Watcher] = (), resume: bool = False) -> Run:
    """Run a recipe in this process (one of several where torchrun started it), from the start or the last checkpoint.

    Raises:
        TunewrightError: what the user can mend. Where the recipe is refused, nothing was begun or changed; where the
            training failed, run.json says `failed`.
        Interrupted: stopped by the user with a checkpoint; run.json says `stopped`.
    """
    processes = join()
    if processes.first and not resume:
        refuse_used(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with occupied(folder, processes):
        record = Record(folder, processes.first)
        if processes.first:
            clear_drafts(folder)
        prepared, step = _prepare(recipe, record, processes, resume, made, watchers)
        if resume:
            _go_on(prepared, record, step.passed)
        else:
            record.begin(prepared.recipe, describe(prepared))
            if processes.first:
                write_bad_rows(prepared, folder / "bad_rows")
                write_labeling(prepared, folder)
        began = time.perf_counter(), time.process_time()
        try:
            _train(prepared, step, record, watchers)
        except BaseException as error:
            record.break_off(error, _since(began))
            if isinstance(error, OSError):
                raise OutputError(f"{folder} cannot be written to: {error}. Mend that and resume.") from error
            raise
        record.update(peak_memory=max(record.info.get("peak_memory", 0), peak_memory(prepared.device)))
        record.end("finished", None, _since(began))
    return Run(folder)


def _prepare(
    recipe: Recipe,
    record: Record,
    processes: Processes,
    resume: bool,
    made: Sequence[Path],
    watchers: Sequence[Watcher],
) -> tuple[Prepared, Step]:
    """The first process loads before the others, which find what it wrote of the start; then all go on together.

    Leaves nothing behind if it fails, but for images of the class, which took long to draw: a run that is begun there
    goes on with them.

    Args:
        made: the folder and those above it that were made for this run, and not by the user; innermost first.
    """
    folder = record.folder
    if not processes.first:
        processes.wait()
        prepared = _loaded(recipe, record, processes, resume)
        return prepared, _ready(prepared, record, processes, resume)

    def tell(line: Mapping[str, Any]) -> None:
        for watcher in watchers:
            watcher(line)

    try:
        prepared = _loaded(recipe, record, processes, resume, tell)
        processes.wait()
        step = _ready(prepared, record, processes, resume)
    except BaseException:
        if not (folder / INFO).exists():
            for path in folder.glob("start/*"):
                if not list(path.glob("*.png")):
                    shutil.rmtree(path, ignore_errors=True)
            (folder / LOCK).unlink()
            with suppress(OSError):  # images are left, or somebody else has put something there
                if (folder / "start").exists():
                    (folder / "start").rmdir()
                for path in made:
                    path.rmdir()
        raise
    return prepared, step


def _loaded(
    recipe: Recipe, record: Record, processes: Processes, resume: bool, tell: Watcher = lambda line: None
) -> Prepared:
    """All that is read, checked and loaded. What refuses the recipe does it here, or when the loop is made ready."""
    if resume:
        allow_code(record.folder)
        refuse_other_recipe(recipe, record)
        for base in (recipe.base, record.info["base"]):
            refuse_lost(base, record.folder)
        refuse_other_weights(record.info["base"], record.info.get("base_sha256"), record.folder / INFO)
    prepared = prepare(recipe, record.folder / "start" / "base", processes.rank, draw=partial(drawn_prior, tell=tell))
    if resume:
        refuse_changed(prepared.rows.sets(), record.info["data"], "Start a new run.")
    return prepared


def _ready(prepared: Prepared, record: Record, processes: Processes, resume: bool) -> Step:
    """What takes the first step; all processes have a share in what the start of the run says of the rows."""
    step = ready(make_job(prepared, record.folder, processes), resume)
    prepared.adopt(step.job)
    prepared.notices.extend(step.notices)
    return step


def make_job(prepared: Prepared, folder: Path, processes: Processes) -> Job:
    """What the loop works on; a notice where it is little. Raises RecipeError where `training.head_first` is idle."""
    rewards = _rewards(prepared)
    job = Job(
        model=prepared.model,
        method=prepared.recipe.method,
        objective=prepared.recipe.objective,
        config=prepared.recipe.training,
        train=prepared.examples("train"),
        validation=prepared.examples("validation"),
        folder=folder,
        device=prepared.device,
        precision=prepared.precision,
        prior=prepared.examples("prior"),
        tests={name: prepared.examples(name) for name in prepared.rows.tests},
        rewards=rewards,
        processes=processes,
    )
    if getattr(job.objective, "algorithm", "") == "ppo":
        job.critic = critic_of(getattr(job.objective, "rewards"), prepared.model).to(prepared.device)  # noqa: B009
        task: Any = prepared.model.task
        task.critic = job.critic
    if job.config.head_first:
        refuse_idle(job)
    refuse_small_steps(job)
    refuse_endless_warmup(job)
    prepared.notices += [*few_steps(job), *rows_beyond_a_step(job), *one_sided(prepared)]
    return job


def rehearsed(recipe: Recipe, folder: Path) -> tuple[Prepared, Job]:
    """All that a run would read, check and load before it begins; what it would keep goes into `folder`."""
    prepared = prepare(_kept_apart(recipe, folder), folder / "base", rehearsal=True, draw=stand_in)
    return prepared, make_job(prepared, folder, Processes())


def _kept_apart(recipe: Recipe, folder: Path) -> Recipe:
    """With folders of its own for what is kept."""
    data = recipe.data
    changes = {name: str(folder / name) for name in ("cache_latents", "cache_captions") if getattr(data, name)}
    return recipe.model_copy(update={"data": data.model_copy(update=changes)}) if changes else recipe


def _rewards(prepared: Prepared) -> Rewards | None:
    """What scores answers to the prompts of all sets, which from now on know their places; None where there are none.

    A source would not do: rows that are given as lists have the same in each set.
    """
    graders = getattr(prepared.recipe.objective, "rewards", None)
    if not graders:
        return None
    asked: list[Prompt] = []
    for name, rows in prepared.rows.sets().items():
        prompts = list({r.source: r for r in rows.records if isinstance(r, Prompt)}.values())
        if prompts:
            found = prepared.encoded[name]
            prepared.encoded[name] = replace(found, examples=placed(found.examples, prompts, len(asked)))
        asked += prompts
    rewards = rewards_of(graders, asked, str(prepared.device))
    prepared.notices += untold_rules(graders)
    try_out(rewards)
    return rewards


def _train(prepared: Prepared, step: Step, record: Record, watchers: Sequence[Watcher]) -> None:
    recipe, first = prepared.recipe, record.first
    for watcher in watchers if first else ():
        watcher({"started": record.info})
    if recipe.evaluation.before and first and step.state.step == 0:
        record.update(evaluation=measure(prepared, record.folder, {}, "before", learner=step.learner))
    step.job.watchers = watchers
    sampler = _sampler(prepared, step)
    if sampler and first and step.state.step == 0 and (sampler.every or recipe.evaluation.before):
        sampler.draw("before")
    start = Start(record.folder / "start", record.folder / "model", prepared.model.base, prepared.model.new)
    if first:
        keep_adapter(prepared.model, start.folder)
    if recipe.training.head_first and step.state.step == 0:
        step = train_head(step.job, start)
    tracked = recipe.training.track if first else []
    trackers = [tracker(name, record.folder, recipe.model_dump(mode="json")) for name in tracked]
    saving = _snapshots(prepared, step) if first and recipe.training.snapshots else []
    step.job.watchers = [*watchers, *trackers, *([sampler] if sampler else []), *saving]
    outcome = run_loop(step)
    if first:
        _finish(prepared, outcome, record, step.learner)
        if sampler:
            sampler.draw("after")


def _sampler(prepared: Prepared, step: Step) -> Sampler | None:
    """What draws sample pictures: at each evaluation too where they were asked for. None where there are none."""
    wanted, job, prompts = prepared.recipe.evaluation, step.job, prepared.sample_prompts()
    if not prompts:
        return None
    return Sampler(
        prepared.model,
        prompts,
        wanted.image_steps,
        job.config.seed,
        job.evaluate_every if wanted.prompts else None,
        job.folder / "samples",
        job.device,
        job.precision,
        step.state.judged_weights,
    )


def _snapshots(prepared: Prepared, step: Step) -> list[Snapshots]:
    job = step.job
    return [Snapshots(prepared.model, job.method, job.evaluate_every, job.folder, step.state.judged_weights)]


def _finish(prepared: Prepared, outcome: Outcome, record: Record, learner: Learner) -> None:
    save(prepared.model, prepared.recipe.method, record.folder / "model")
    pictures: dict[str, Any] = {}
    evaluation = measure(prepared, record.folder, record.info.get("evaluation", {}), "after", pictures, learner)
    if any(pictures.values()):
        write_page(json.dumps(pictures, ensure_ascii=False), record.folder / PICTURES)
    record.update(
        steps=outcome.steps,
        weights=outcome.weights,
        best=outcome.best,
        notices=list(
            dict.fromkeys([*record.info["notices"], *outcome.notices, *without_contrast(Run(record.folder).metrics)])
        ),
        evaluation=evaluation,
    )


def _since(began: tuple[float, float]) -> dict[str, float]:
    return {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}


def measure(
    prepared: Prepared,
    folder: Path,
    found: Mapping[str, Any],
    when: str,
    pictures: dict[str, Any] | None = None,
    learner: Learner | None = None,
) -> dict[str, Any]:
    """Scores and samples of the model as it is now on every evaluation set, beside what was found before.

    Args:
        folder: of the run, which keeps what the scores before were made of: those after are paired with them by row.
        pictures: is given the gallery of each set, where its rows are images.
        learner: answers prompts and scores the answers, where the rows are prompts.
    """
    model, config = prepared.model, prepared.recipe.evaluation
    result = {name: dict(values) for name, values in found.items()}
    all_scores: dict[str, Scores] = {}
    prepared.model.module.to(prepared.device)
    for name in prepared.evaluation_sets():
        records = prepared.rows.sets()[name].records
        examples = prepared.examples(name)
        with computing(prepared.precision, prepared.device):
            if isinstance(records[0], Prompt):
                assert learner is not None
                predictions = rewarded(prepared.recipe.objective, learner.alone(), examples)
            else:
                predictions = model.task.predict(model, examples)
            scores, samples = described(predictions, model, examples, records, config)
        if pictures is not None:
            pictures[name] = gallery(predictions, records, getattr(model.task, "labels", []), config.samples)
        all_scores[name] = scores
        _note(result.setdefault(name, {}), when, scores, samples)
    if when == "before":
        keep(all_scores, folder / BEFORE)
        return result
    earlier = kept(folder / BEFORE)
    for name, scores in all_scores.items():
        if before := result[name].get("before"):
            result[name]["changes"] = changes(before["metrics"], earlier.get(name, {}), scores)
    return result


def _note(entry: dict[str, Any], when: str, scores: Scores, samples: Sequence[Mapping[str, Any]]) -> None:
    """Add the scores and samples of a set to its entry, each sample beside what was answered before."""
    entry[when] = scores.to_dict()
    earlier = {sample["source"]: sample for sample in entry.get("samples", [])}
    entry["samples"] = [{**earlier.get(s["source"], {}), **_as(s, when)} for s in samples]


def _as(sample: Mapping[str, Any], when: str) -> dict[str, Any]:
    kept = {key: value for key, value in sample.items() if key not in ("output", "reward")}
    got = {f"reward_{when}": sample["reward"]} if "reward" in sample else {}
    return {**kept, when: sample["output"], **got}


def _go_on(prepared: Prepared, record: Record, passed: Sequence[str]) -> None:
    """Say that the run is under way again, whether elsewhere, and which damaged checkpoints were passed over."""
    info, place = record.info, place_of(prepared)
    changed = differences(*({**found["versions"], **found["machine"]} for found in (info, place)))
    notice = f"Resumed elsewhere, so that weights can differ by rounding ({'; '.join(changed)})."
    notices = [*info["notices"], *([notice] if changed else []), *passed]
    record.update(status="running", finished=None, error=None, notices=notices, **place)


def refuse_other_recipe(recipe: Recipe, record: Record) -> None:
    """A run goes on with the recipe that it began with. Raises RecipeError that names what differs."""
    begun = {path: absolute(value) if path in PLACES else value for path, value in record.info["recipe"].items()}
    if changed := differences(begun, lasting(located(recipe))):
        raise goes_on_as_it_began(f"Put these back in {record.folder / RECIPE}", record.folder, changed)
