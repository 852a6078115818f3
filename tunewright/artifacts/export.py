"""Exporting a tuned model in another form, and seeing that it still is that model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import isfinite
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tunewright.artifacts import apart
from tunewright.artifacts.adopt import adopt
from tunewright.artifacts.apart import foreign
from tunewright.artifacts.apart.foreign import Answers
from tunewright.artifacts.card import read_card
from tunewright.artifacts.interpolate import write_point
from tunewright.artifacts.load import infer_task, load, weights_folder
from tunewright.artifacts.noise import noise_questions
from tunewright.artifacts.questions import HeldOut, make_questions
from tunewright.artifacts.save import beside, refuse_place
from tunewright.artifacts.start import parse_point
from tunewright.artifacts.targets import TARGETS, Target
from tunewright.artifacts.verify import Comparison, Limits, compare, limits_for
from tunewright.errors import DAMAGED, BaseModelError, OutputError, RecipeError, VerificationError
from tunewright.methods._peft import layers_off
from tunewright.tasks._factories import is_given
from tunewright.tasks._modules import layout_of
from tunewright.tasks.base import Model

VERIFICATION = "verification.json"


def export(
    where: str | PathLike[str],
    target: str,
    folder: Path,
    precision: str | None = None,
    held_out: HeldOut | None = None,
    base: str | None = None,
) -> Path:
    """Write a run, an adapter or a point `RUN@0.5` to `folder` in another form, and compare it with the trained model.

    The trained model answers first, in fp32, as the run saved it. The export is written beside, run in a fresh process
    by the libraries of its users, and renamed to `folder` if it answers alike; `verification.json` in it has the
    figures. If not, it is left as FOLDER.unverified.

    Args:
        precision: one of the target's; by default its first.
        held_out: the rows that both are asked; by default a few sentences.
        base: the pipeline that a LoRA file of others belongs to, which is then what is exported.

    Raises:
        RecipeError, MissingExtra, MethodError, BaseModelError: the model cannot be exported so.
        OutputError: the folder is not empty, or cannot be written.
        VerificationError: the export does not behave like the trained model.
    """
    if target not in TARGETS:
        raise RecipeError(f"{target} is no export target. Known: {', '.join(TARGETS)}.")
    refuse_place(folder)
    _refuse_unverified(folder)
    if base is not None:
        with beside(folder) as place:
            return _export(adopt(Path(where), base, place / "lora"), target, folder, precision, held_out)
    run, alpha = parse_point(str(where))
    if alpha == 1:
        return _export(run, target, folder, precision, held_out)
    with beside(folder) as place:
        return _export(write_point(run, alpha, place / "point"), target, folder, precision, held_out)


def _export(
    where: str | PathLike[str], target: str, folder: Path, precision: str | None, held_out: HeldOut | None
) -> Path:
    chosen = TARGETS[target]
    precision = precision or chosen.precisions[0]
    weights = weights_folder(where)
    _refuse_task(chosen, infer_task(str(where)))
    chosen.check(weights, precision)
    model = load(where)
    _refuse_module(chosen, model)
    if model.task.diffuses:
        asked = noise_questions(model, held_out, read_card(weights))
    else:
        asked = make_questions(model, held_out)
    questions = {**asked, "device": chosen.device(precision)}
    judge = _judge(model, questions, limits_for(target, precision, model.task.routes(model.module)))
    try:
        with beside(folder) as draft:
            chosen.write(model, precision, draft, weights)
            del model  # the export needs the memory
            said = {"target": target, "precision": precision}
            said |= {name: questions[name] for name in ("rows_from", "unit") if name in questions}
            verification = {**said, **_verify(target, draft, questions, judge)}
            text = json.dumps(verification, indent=2, ensure_ascii=False)
            (draft / VERIFICATION).write_text(text + "\n", encoding="utf-8")
            return _settle(draft, folder, verification)
    except OSError as error:
        raise OutputError(f"{folder} could not be written: {error}") from error


def read_verification(folder: Path) -> dict[str, Any]:
    """What the verification.json of an export says."""
    return json.loads((folder / VERIFICATION).read_text(encoding="utf-8"))


def _verify(
    target: str, draft: Path, questions: Mapping[str, Any], judge: Callable[[Answers], Comparison]
) -> dict[str, Any]:
    """What verification.json says of the export in `draft`: "verified" first."""
    try:
        exported = in_a_fresh_process(target, draft.absolute(), questions)
    except subprocess.CalledProcessError as error:
        by, found = [], Comparison({}, {}, [f"It could not be run: {_last_line(error.stderr)}"])
    else:
        by, found = exported.by, judge(exported)
    figures = {name: value if isfinite(value) else None for name, value in found.figures.items()}
    return {
        "verified": not found.failures,
        "failures": found.failures,
        "rows": len(questions["rows"]),
        "prompts": len(questions["asked"]),
        "figures": figures,
        "limits": found.limits,
        "run_by": by,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _judge(model: Model, questions: Mapping[str, Any], limits: Limits) -> Callable[[Answers], Comparison]:
    """Ask the trained model, and give what compares the export's answers with its own."""
    reader: foreign.Reader
    if model.task.diffuses:
        reader = foreign.Diffusers(model.task.pipeline(model))  # type: ignore[attr-defined]
    else:
        labels = getattr(model.task, "labels", [])
        if questions["module"]:
            reader = foreign.Module(model.module, model.processor, labels)
        else:
            reader = foreign.Torch(model.module, model.processor, questions["stop"], labels=labels)
    trained = foreign.answers(reader, questions)
    trained = replace(trained, prompts=questions["prompts"], pixels=questions["pixels"])  # as training fed them
    if not all(np.isfinite(logits).all() for logits in trained.logits):
        raise BaseModelError(DAMAGED)
    untuned = None
    if hasattr(model.module, "peft_config"):
        with layers_off(model):
            untuned = Answers(foreign.logits_of(reader, questions), [], [])
    kind = "regression" if model.task.diffuses else getattr(model.task, "kind", "single_label")
    return partial(compare, trained, kind=kind, limits=limits, untuned=untuned)


def _refuse_task(target: Target, task: str) -> None:
    """Raises BaseModelError for a task whose models the target has no form for."""
    others = [name for name, one in TARGETS.items() if task in one.tasks]
    if target.name not in others:
        raise BaseModelError(f"A model for {task} has no form {target.name}. Possible: {', '.join(others)}.")


def _refuse_module(target: Target, model: Model) -> None:
    """Raises BaseModelError for a torch module that the target's libraries do not run, or cannot make."""
    layout = layout_of(model.module)
    if layout is None:
        return
    if not target.of_modules:
        others = [name for name, one in TARGETS.items() if one.of_modules]
        raise BaseModelError(f"A torch module has no form {target.name}. Possible: {', '.join(others)}.")
    if target.by_code and is_given(layout.factory):
        raise BaseModelError(
            f"{layout.factory} is an object of this process, which nobody else could make: {target.name} needs a run "
            "whose base is package.module:factory. A graph needs none: --to onnx."
        )


def in_a_fresh_process(target: str, folder: Path, questions: Mapping[str, Any]) -> Answers:
    """Let `apart` ask the export: run by its path, which puts nothing but `foreign` in reach."""
    from safetensors.numpy import load_file

    surroundings = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with TemporaryDirectory() as place:
        work = Path(place)
        (work / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        command = [sys.executable, "-P", apart.__path__[0], target, str(folder), str(work)]
        subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
        logits = load_file(work / "logits.safetensors")
        rest = json.loads((work / "answers.json").read_text(encoding="utf-8"))
    return Answers([logits[str(i)] for i in range(len(logits))], **rest)


def _settle(draft: Path, folder: Path, verification: Mapping[str, Any]) -> Path:
    """Give the export its name; one that is not verified a name that says so."""
    if verification["verified"]:
        if folder.exists():
            folder.rmdir()  # it is empty
        return draft.rename(folder)
    left = _unverified(folder)
    shutil.rmtree(left, ignore_errors=True)
    draft.rename(left)
    failures = "\n".join(f"  {line}" for line in verification["failures"])
    raise VerificationError(
        f"The export does not behave like the trained model. It is left as {left}, marked unverified:\n{failures}",
        verification,
    )


def _unverified(folder: Path) -> Path:
    """Where an export is left that does not behave like the trained model."""
    return folder.with_name(f"{folder.name}.unverified")


def _refuse_unverified(folder: Path) -> None:
    """An earlier failure makes way for a new one, but nothing else does. Raises OutputError."""
    left = _unverified(folder)
    try:
        ours = read_verification(left)["verified"] is False
    except (OSError, ValueError, TypeError, KeyError):
        ours = left.is_dir() and not any(left.iterdir())
    if left.exists() and not ours:
        raise OutputError(
            f"{left} is in use, and an export to {folder} would be left there if it failed. Name another folder."
        )


def _last_line(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "no reason given")
