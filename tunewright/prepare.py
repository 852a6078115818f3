"""From a recipe to what the loop needs: rows read and checked, the model loaded, every `auto` decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts.card import read_card
from tunewright.artifacts.load import is_adapter, load_start, weights_folder
from tunewright.artifacts.prior import Computing, drawn_prior, refuse_no_prior
from tunewright.artifacts.save import beside
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig
from tunewright.data.kinds import CaptionedImage, Classified, Labelled, Record
from tunewright.data.records import Records
from tunewright.deciding import decide, refuse_idle, refuse_idle_training, weigh_classes
from tunewright.engine.device import pick_device, pick_precision
from tunewright.engine.job import Job
from tunewright.errors import DataError, MethodError, RecipeError, counted
from tunewright.evaluation.evaluate import refuse_idle_pattern
from tunewright.methods.base import Method
from tunewright.reading import Rows, choose_task, lines_of, read_rows
from tunewright.recipe import Recipe
from tunewright.tasks._factories import allow, is_factory
from tunewright.tasks._module_config import ModuleConfig
from tunewright.tasks._modules import begin
from tunewright.tasks.base import Encoded, Model, Task

PICTURES = 4
"""Captions that are drawn before and after where no prompts are given: an image takes as long as many steps."""


NAMED_PAIRS = 100
"""Different rules that a model keeps the names of."""


@dataclass
class Prepared:
    """A recipe ready to run: `recipe` has every `auto` decided but that of the forward pass."""

    recipe: Recipe
    model: Model
    rows: Rows
    encoded: dict[str, Encoded]
    device: Any
    precision: str
    notices: list[str]

    def examples(self, name: str) -> list[Example]:
        return self.encoded[name].examples if name in self.encoded else []

    def adopt(self, job: Job) -> None:
        """Take over what the objective has fixed of the rows."""
        for name, examples in {"train": job.train, "validation": job.validation, **job.tests}.items():
            if name in self.encoded:
                self.encoded[name] = replace(self.encoded[name], examples=list(examples))

    def evaluation_sets(self) -> list[str]:
        """The test sets; the validation rows where there are none."""
        return list(self.rows.tests) or (["validation"] if self.rows.validation else [])

    def sample_prompts(self) -> list[str]:
        """What sample pictures show: the prompts that were asked for, or a few captions, first those measured on."""
        wanted = self.recipe.evaluation
        if wanted.prompts or not hasattr(self.model.task, "images"):
            return wanted.prompts
        sets, names = self.rows.sets(), [*self.evaluation_sets(), "train"]
        rows = (row for name in names for row in sets[name].records if isinstance(row, CaptionedImage))
        captions = dict.fromkeys(row.text for row in rows)
        return list(captions)[: min(wanted.samples, PICTURES)]


def prepare(
    recipe: Recipe,
    start: Path,
    rank: int = 0,
    *,
    rehearsal: bool = False,
    draw: Callable[..., Records] = drawn_prior,
) -> Prepared:
    """Read, check and load everything that a run needs. Raises a TunewrightError that names what is wrong.

    Args:
        rehearsal: whether nothing will be trained, so that of what is kept on disk a part may stand for the whole.
        draw: makes the images of the class that `data.prior_prompt` asks for.
    """
    training, data = recipe.training, recipe.data
    device = pick_device(training.device, rank)
    precision = pick_precision(training.precision, device)
    rows = read_rows(recipe)
    task, notices = choose_task(recipe, rows.given)
    refuse_idle_training(recipe, task, bool(rows.validation))
    model = _loaded(recipe, task, start, precision, rows.train)
    if hasattr(task, "prepare"):
        task.prepare(model, data, rows.train.in_turns)
    if hasattr(task, "template_notices"):
        model.notices += task.template_notices(model, data)
    if hasattr(task, "refuse_steps"):
        task.refuse_steps(model, recipe.evaluation.image_steps, "evaluation.image_steps")
    recipe.method.check_rows(rows.train.records)
    if data.prior_prompt or (data.prior and "prompt" not in recipe.objective.reads):
        refuse_no_prior(model)
    if data.prior_prompt:
        rows.prior = draw(model, data, training.seed, Computing(device, precision), start.with_name("prior"))
    recipe.method.extend(model)
    encoded = _with_prior_marked(_encode(task, model, rows, data), rows)
    notices += _account(encoded, rows, data)
    refuse_idle(recipe, model)
    weigh_classes(recipe, task, encoded["train"].examples)
    _attach(recipe, model)
    if hasattr(task, "keep"):
        kept = task.keep(model, [found.examples for found in encoded.values()], data, device, stand_in=rehearsal)
        pairs = zip(encoded.items(), kept, strict=True)
        encoded = {name: replace(found, examples=examples) for (name, found), examples in pairs}
    decided = decide(training, recipe.method, model, len(encoded["train"].examples), recipe.objective)
    chosen = device.type if training.device == "auto" else training.device  # each process picks its own of several
    decided = decided.model_copy(update={"device": chosen, "precision": precision})
    if data.validation is None:
        data = data.model_copy(update={"validation": rows.held_out})
    recipe = recipe.model_copy(update={"task": task.name, "training": decided, "data": data})
    notices += [*rows.notices, *model.notices]
    prepared = Prepared(recipe, model, rows, encoded, device, precision, notices)
    for name in prepared.evaluation_sets():
        refuse_idle_pattern(model, prepared.examples(name), rows.sets()[name].records, recipe.evaluation)
    return prepared


def told_rules(rows: Records) -> list[str] | None:
    """See `Model.pairs`: other second texts are what it learned from, and no names."""
    if not isinstance(rows.records[0], Labelled):
        return None
    found = dict.fromkeys(row.text_pair for row in rows.records if isinstance(row, Labelled) and row.text_pair)
    named = not found or (rows.format == "violation" and len(found) <= NAMED_PAIRS)
    return list(found) if named else None


def _loaded(recipe: Recipe, task: Task, start: Path, precision: str, rows: Records) -> Model:
    """The model that training begins with, as the recipe's base, method and precision ask for."""
    if recipe.training.zero_shot:
        _begin_with_prompts(task, recipe.base, recipe.training.zero_shot)
    dtype = "bfloat16" if precision == "bf16" and recipe.method.saved_as != "transformers" else None
    model = load_start(base_of(recipe, start), task, recipe.method, start, recipe.training.seed, dtype)
    model.max_length = recipe.data.max_length
    model.pairs = told_rules(rows)
    model.reserve = getattr(recipe.objective, "max_new_tokens", 0)
    return model


def _attach(recipe: Recipe, model: Model) -> None:
    """Let the method choose what trains, and add its own, in place."""
    if model.new_tokens and not recipe.method.trains_new_tokens:
        raise MethodError(f"data.special_tokens do not train with method: {recipe.method.type}. Use lora or full.")
    unlearned = _teach_to_end(model, recipe.method)
    recipe.method.attach(model, recipe.training.seed)
    if not unlearned:
        return
    head = [p.requires_grad for p in model.module.get_output_embeddings().parameters()]
    if recipe.method.trains_new_tokens and not all(head):
        model.notices.append(f"{unlearned}: that token's row trains too.")
    elif not any(head):
        model.notices.append(f"{unlearned}: answers may not end unless its row trains, as with method: lora or full.")


def _with_prior_marked(encoded: dict[str, Encoded], rows: Rows) -> dict[str, Encoded]:
    """Where there are images of the class, they and the training rows say which they are."""
    if not rows.prior:
        return encoded
    marked = {}
    for name in ("train", "prior"):
        examples = [replace(e, prior=name == "prior") for e in encoded[name].examples]
        marked[name] = replace(encoded[name], examples=examples)
    return {**encoded, **marked}


def _account(encoded: Mapping[str, Encoded], rows: Rows, data: DataConfig) -> list[str]:
    """What became of the rows, in words. Raises DataError where nothing of a set is left."""
    notices, limit = [], encoded["train"].limit
    if data.max_length and data.max_length > limit:
        notices.append(f"data.max_length: {data.max_length:,} is beyond the model's context of {limit:,} tokens.")
    for name, found in encoded.items():
        notices += [f"{name}: {notice}" for notice in found.overlength.notices()]
        skipped = len(found.faults) + len(rows.sets()[name].faults)
        if skipped:
            unused = counted(skipped, "row cannot be used and is skipped", "rows cannot be used and are skipped")
            notices.append(f"{name}: {unused}; see bad_rows/{name}.jsonl.")
        if not any(e.trained for e in found.examples):
            raise DataError(f"Every row of {name} is skipped or has weight 0: there is nothing to learn or to measure.")
    if rows.validation and not rows.tests:
        notices.append("There is no test set: figures are on the validation rows, which also choose the weights.")
    return notices + _classes_without_rows(rows.train.records, encoded["train"])


def base_of(recipe: Recipe, start: Path) -> str:
    """The folder or name of the base. That of a torch module is written to `start` first, unless it is there already.

    Raises:
        RecipeError: options of a torch module, for a base that is none.
        BaseModelError: the module cannot be made, or does not fit its weights.
    """
    if not is_factory(recipe.base):
        idle = [name for name in ("weights", "module") if getattr(recipe, name) is not None]
        if idle:
            raise RecipeError(
                f"{' and '.join(idle)}: for a base that is a torch module (package.module:factory), and "
                f"{recipe.base} is none. Leave it out."
            )
        return recipe.base
    allow(recipe.base)
    if recipe.task not in ("auto", "image-classification"):
        raise RecipeError(f"task: {recipe.task} has no torch modules as bases: they classify images.")
    if not start.exists():
        with beside(start) as draft:
            begin(recipe.base, recipe.module or ModuleConfig(), recipe.weights, draft, recipe.training.seed)
            draft.rename(start)
    return str(start)


def _begin_with_prompts(task: Any, base: str, templates: list[str]) -> None:
    """Let the base's text tower make the head. Raises RecipeError where it cannot, or where there is a head already."""
    if not hasattr(task, "templates") or task.kind == "regression":
        raise RecipeError("training.zero_shot: prompts name the classes of images. Leave it out.")
    folder = weights_folder(base)
    if is_adapter(folder) or read_card(folder):
        raise RecipeError(f"training.zero_shot: {base} was tuned before, and has its head already. Leave it out.")
    task.templates = templates


def _teach_to_end(model: Model, method: Method) -> str:
    """Let the row of an end token train that the base never learned: no adapter could make it likely.

    A sentence comes back that names such tokens.
    """
    ends = model.task.unlearned_ends(model) if hasattr(model.task, "unlearned_ends") else []
    unlearned = [end for end in ends if end not in model.new_tokens]
    if not unlearned:
        return ""
    if method.trains_new_tokens:
        model.new_tokens = (*model.new_tokens, *unlearned)
    return "The base never learned to end with " + ", ".join(model.processor.convert_ids_to_tokens(unlearned))


def _encode(task: Task, model: Model, rows: Rows, data: DataConfig) -> dict[str, Encoded]:
    """Every set as examples. The faults of all sets come in one DataError."""
    encoded: dict[str, Encoded] = {}
    errors: dict[str, DataError] = {}
    for name, records in rows.sets().items():
        try:
            encoded[name] = task.encode(model, records.records, data)
        except DataError as error:
            errors[name] = error
    if not errors:
        return encoded
    same = len({str(error) for error in errors.values()}) == 1 < len(errors)
    if same and not any(error.faults for error in errors.values()):  # it is no matter of the rows
        raise next(iter(errors.values()))
    named = [error if error.faults else DataError(f"{name}: {error}") for name, error in errors.items()]
    raise DataError("The data cannot be used:", lines_of(named)) if len(named) > 1 else named[0]


def _classes_without_rows(records: Sequence[Record], encoded: Encoded) -> list[str]:
    """Said of classes that cannot be learned because all their rows are skipped."""
    used = {e.source for e in encoded.examples} if encoded.faults else set()
    labelled = [r for r in records if isinstance(r, Classified) and isinstance(r.label, str) and encoded.faults]
    lost = sorted({str(r.label) for r in labelled} - {str(r.label) for r in labelled if r.source in used})
    named = f"No training row of {', '.join(lost)} can be used, but the model gets the label"
    return [f"{named}: mend the rows, or remove them all."] if lost else []
