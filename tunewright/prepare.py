"""From a recipe to what the loop needs: rows read and checked, the model loaded, every `auto` decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts.card import read_card
from tunewright.artifacts.load import infer_task, is_adapter, load_start, weights_folder
from tunewright.artifacts.prior import Computing, drawn_prior, refuse_no_prior
from tunewright.artifacts.save import beside
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig
from tunewright.data.kinds import CaptionedImage, Classified, Record
from tunewright.data.labels import may_be_numbers
from tunewright.data.records import Records, load_records, split_validation
from tunewright.engine.config import TrainingConfig
from tunewright.engine.device import auto_batch, auto_learning_rate, pick_device, pick_precision
from tunewright.errors import BaseModelError, DataError, MethodError, RecipeError, counted
from tunewright.evaluation.evaluate import refuse_idle_evaluation, refuse_idle_pattern
from tunewright.methods.base import Method, moving_norms, parameter_count
from tunewright.objectives.supervised import NOISING, Supervised, class_weights
from tunewright.recipe import Recipe
from tunewright.tasks import MODULES, task_class
from tunewright.tasks._blocks import unwrapped
from tunewright.tasks._factories import allow, is_factory
from tunewright.tasks._module_config import ModuleConfig
from tunewright.tasks._modules import begin
from tunewright.tasks._pipeline import is_pipeline
from tunewright.tasks.base import Encoded, Model, Task

PICTURES = 4
"""Captions that are drawn before and after where no prompts are given: an image takes as long as many steps."""


@dataclass
class Rows:
    """The rows of a recipe, read and checked: by the name of their set."""

    train: Records
    validation: Records | None
    tests: dict[str, Records]
    notices: list[str] = field(default_factory=list)
    held_out: bool = False
    prior: Records | None = None

    @property
    def given(self) -> Records:
        """The training rows as they were given: a class may be so rare that all its rows are held out."""
        if not (self.held_out and self.validation):
            return self.train
        return replace(self.train, records=[*self.train.records, *self.validation.records])

    def sets(self) -> dict[str, Records]:
        others = {"validation": self.validation, "prior": self.prior}
        return {"train": self.train, **{name: rows for name, rows in others.items() if rows}, **self.tests}


def read_rows(recipe: Recipe) -> Rows:
    """Read every set. The faults of all files come in one DataError."""
    data, seed, kinds = recipe.data, recipe.training.seed, wanted_kinds(recipe)
    wanted = {"train": data.train, **data.test_sets()}
    if data.prior:
        wanted["prior"] = data.prior
    if not isinstance(data.validation, float | int):
        wanted["validation"] = data.validation
    found, errors = _each(wanted, lambda location: load_records(location, data, kinds=kinds))
    if faults := _lines(errors):
        raise DataError(
            faults[0] if len(faults) == 1 else "The data cannot be used:", faults if len(faults) > 1 else ()
        )
    notices = [doubt for records in found.values() for doubt in records.doubts]
    train, validation, prior = found.pop("train"), found.pop("validation", None), found.pop("prior", None)
    if isinstance(data.validation, float | int) and data.validation > 0:
        train, validation = split_validation(train, data.validation, seed)
        held_out = counted(len(validation.records), "of the training rows is", "of the training rows are")
        notices.append(f"{held_out} held out for validation.")
    for name, records in [("validation", validation), ("prior", prior), *found.items()]:
        if records and records.kind != train.kind:
            raise DataError(
                f"{name} holds {records.kind} rows, the training set {train.kind} rows: they must be alike."
            )
    return Rows(train, validation, found, notices, held_out=isinstance(data.validation, float | int), prior=prior)


def task_of_rows(kind: str | None) -> str | None:
    """The one task that reads rows of this kind; None where there is none, or are several."""
    fitting = [task for task in MODULES if kind in task_class(task).data_kinds]
    return fitting[0] if len(fitting) == 1 else None


def wanted_kinds(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of rows that the task reads, if it is given or a base that lies here tells it; else none."""
    name = _told_task(recipe.base) if recipe.task == "auto" else recipe.task
    return task_class(name).data_kinds if name else ()


def _told_task(base: str) -> str | None:
    """The task that a base tells which lies here. What is wrong with it is said where it is loaded."""
    try:
        return infer_task(base) if Path(base).exists() or is_factory(base) else None
    except BaseModelError:
        return None


def _refuse_other_images(name: str, recipe: Recipe, rows: Records) -> None:
    """Classes for a base that makes images of captions, and captions for one that classifies. Raises RecipeError."""
    base, told = recipe.base, _told_task(recipe.base)
    if rows.kind == "image" and (told == "text-to-image" or (told is None and is_pipeline(base))):
        raise RecipeError(
            f"{base} makes images from captions, and these rows have labels: write captions (text files beside the "
            "images, or a column text), or take a base that classifies images."
        )
    if rows.kind == "captioned_image" and recipe.task == "auto" and told not in (None, name):
        raise RecipeError(
            f"{base} is for {told}, and these rows are images with captions: give classes (a folder for each, or a "
            "column label), or take a pipeline of diffusers' as base."
        )


def choose_task(recipe: Recipe, rows: Records) -> tuple[Task, list[str]]:
    """The task, from the recipe, or else from the rows and the base; with what was inferred, in words."""
    name, notices = recipe.task, []
    if name == "auto":
        name = task_of_rows(rows.kind) or infer_task(recipe.base)
        notices.append(f"Task: {name} (the rows are {rows.kind} rows).")
    chosen = task_class(name)
    if rows.kind not in chosen.data_kinds:
        raise RecipeError(
            f"task: {name} reads {' or '.join(chosen.data_kinds)} rows, and these are {rows.kind} rows. "
            "Change task, or say with data.format and data.columns how the rows are meant."
        )
    _refuse_other_images(name, recipe, rows)
    labels = [r.label for r in rows.records if isinstance(r, Classified) and isinstance(r.label, str)]
    if recipe.data.labels == "auto" and may_be_numbers(labels):
        notices.append("Labels: whole numbers are read as classes. To regress on them set data.labels: numbers.")
    return (chosen.from_records(rows.records) if hasattr(chosen, "from_records") else chosen()), notices


@dataclass
class Prepared:
    """A recipe ready to run: `recipe` has every `auto` decided but that of the forward pass.

    `total` counts the parameters of the model before the method added any.
    """

    recipe: Recipe
    model: Model
    rows: Rows
    encoded: dict[str, Encoded]
    total: int
    device: Any
    precision: str
    notices: list[str]

    def examples(self, name: str) -> list[Example]:
        return self.encoded[name].examples if name in self.encoded else []

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
    training = recipe.training
    device = pick_device(training.device, rank)
    precision = pick_precision(training.precision, device)
    rows = read_rows(recipe)
    task, notices = choose_task(recipe, rows.given)
    if training.zero_shot:
        _begin_with_prompts(task, recipe.base, training.zero_shot)
    if training.packing and not task.packs:
        raise RecipeError(f"training.packing: {task.name} does not pack rows. Leave it out.")
    if training.packing and not recipe.method.packs():
        raise RecipeError(
            "training.packing does not go with virtual tokens, which would stand in front of the first row."
        )
    dtype = "bfloat16" if precision == "bf16" and recipe.method.saved_as != "transformers" else None
    model = load_start(base_of(recipe, start), task, recipe.method, start, training.seed, dtype)
    model.max_length = recipe.data.max_length
    if hasattr(task, "prepare"):
        task.prepare(model, recipe.data, rows.train.kind)
    recipe.method.check_rows(rows.train.records)
    if recipe.data.prior or recipe.data.prior_prompt:
        refuse_no_prior(model)
    if recipe.data.prior_prompt:
        computed = Computing(device, precision)
        rows.prior = draw(model, recipe.data, training.seed, computed, start.with_name("prior"))
    recipe.method.extend(model)
    encoded = _encode(task, model, rows, recipe.data)
    if rows.prior:
        for name in ("train", "prior"):
            examples = [replace(e, prior=name == "prior") for e in encoded[name].examples]
            encoded[name] = replace(encoded[name], examples=examples)
    limit = encoded["train"].limit
    if recipe.data.max_length and recipe.data.max_length > limit:
        notices.append(
            f"data.max_length: {recipe.data.max_length:,} is beyond the model's context of {limit:,} tokens."
        )
    for name, found in encoded.items():
        notices += [f"{name}: {notice}" for notice in found.overlength.notices()]
        skipped = len(found.faults) + len(rows.sets()[name].faults)
        if skipped:
            unused = counted(skipped, "row cannot be used and is skipped", "rows cannot be used and are skipped")
            notices.append(f"{name}: {unused}; see bad_rows/{name}.jsonl.")
    notices += _classes_without_rows(rows.train.records, encoded["train"])
    _refuse_idle(recipe, model)
    _weigh_classes(recipe, task, encoded["train"].examples)
    if model.new_tokens and not recipe.method.trains_new_tokens:
        raise MethodError(f"data.special_tokens do not train with method: {recipe.method.type}. Use lora or full.")
    _refuse_weightless(encoded)
    unlearned = _teach_to_end(model, recipe.method)
    total = parameter_count(model.module)
    recipe.method.attach(model, training.seed)
    if unlearned and not any(p.requires_grad for p in model.module.get_output_embeddings().parameters()):
        model.notices.append(f"{unlearned}: answers may not end unless its row trains, as with method: lora or full.")
    if hasattr(task, "keep"):
        sets = [found.examples for found in encoded.values()]
        kept = task.keep(model, sets, recipe.data, device, stand_in=rehearsal)
        pairs = zip(encoded.items(), kept, strict=True)
        encoded = {name: replace(found, examples=examples) for (name, found), examples in pairs}
    decided = decide(training, recipe.method, model, len(encoded["train"].examples), bool(rows.validation))
    if rows.validation and not rows.tests:
        notices.append("There is no test set: figures are on the validation rows, which also choose the weights.")
    chosen = device.type if training.device == "auto" else training.device  # each process picks its own of several
    decided = decided.model_copy(update={"device": chosen, "precision": precision})
    recipe = recipe.model_copy(update={"task": task.name, "training": decided})
    notices += [*rows.notices, *model.notices]
    prepared = Prepared(recipe, model, rows, encoded, total, device, precision, notices)
    for name in prepared.evaluation_sets():
        refuse_idle_pattern(model, prepared.examples(name), rows.sets()[name].records, recipe.evaluation)
    return prepared


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

    Where the method does not train single rows, a sentence comes back that names the token.
    """
    ends = model.task.unlearned_ends(model) if hasattr(model.task, "unlearned_ends") else []
    unlearned = [end for end in ends if end not in model.new_tokens]
    if not unlearned:
        return ""
    named = "The base never learned to end with " + ", ".join(model.processor.convert_ids_to_tokens(unlearned))
    if not method.trains_new_tokens:
        return named
    model.new_tokens = (*model.new_tokens, *unlearned)
    model.notices.append(f"{named}: that token's row trains too.")
    return ""


def _encode(task: Task, model: Model, rows: Rows, data: DataConfig) -> dict[str, Encoded]:
    """Every set as examples. The faults of all sets come in one DataError."""
    encoded, errors = _each(rows.sets(), lambda records: task.encode(model, records.records, data))
    if len(errors) > 1:
        raise DataError("The data cannot be used:", _lines(errors))
    if errors:
        raise errors[0]
    return encoded


def _each(sets: Mapping[str, Any], make: Callable[[Any], Any]) -> tuple[dict[str, Any], list[DataError]]:
    """What `make` makes of every set by its name, and the errors of those that cannot be used."""
    made, errors = {}, []
    for name, one in sets.items():
        try:
            made[name] = make(one)
        except DataError as error:
            errors.append(error)
    return made, errors


def _lines(errors: Sequence[DataError]) -> list[str]:
    """Errors as lines of one report: each with its own message, then its faults."""
    return [line for error in errors for line in (str(error).split("\n")[0], *error.faults)]


def decide(training: TrainingConfig, method: Method, model: Model, rows: int, validation: bool) -> TrainingConfig:
    """Replace `auto` by the documented rules; refuse options that would have no effect."""
    for option in ("patience", "evaluate_every"):
        if getattr(training, option) is not None and not validation:
            raise RecipeError(f"training.{option} needs validation rows. Give data.validation, or leave {option} out.")
    changes: dict[str, Any] = {}
    if training.learning_rate == "auto":
        reference = method.learning_rate * (NORMED if _is_normed(model, method) else 1)
        changes["learning_rate"] = auto_learning_rate(reference, hidden_size(model)) if method.scaled else reference
    if training.batch == "auto" and training.batch_tokens is None:
        changes["batch"] = auto_batch(rows, bool(moving_norms(model.module, method)))
    return training.model_copy(update=changes)


NORMED = 10
"""How much larger the automatic rate is where batch norms of the trunk train.

They take the scale out of the weights in front of them, and with it most of the effect of a step (van Laarhoven, arXiv
1706.05350). Measured in full training, one seed: ResNet-20 on noisy CIFAR-10 (800 rows, 3 epochs) has 55.0 % at the
rate by width, 1.5e-4, and 62.8 % at ten times that; SqueezeNet, without batch norms, on ants and bees 83.0 % at the
rate by width, 5e-5, and 79.1 % at ten times that.
"""


def _is_normed(model: Model, method: Method) -> bool:
    along = {id(m) for name in model.along for m in unwrapped(model.module).get_submodule(name).modules()}
    return any(id(norm) not in along for norm in moving_norms(model.module, method))


def hidden_size(model: Model) -> int:
    return int(model.task.width(model.module))


def _refuse_idle(recipe: Recipe, model: Model) -> None:
    """Options that would have no effect on this model and these rows."""
    refuse_idle_evaluation(recipe.evaluation, model)
    objective = recipe.objective
    if not isinstance(objective, Supervised):
        return
    if objective.router_loss and not model.task.routes(model.module):
        raise RecipeError("objective.router_loss is for language models that are mixtures of experts. Leave it out.")
    if objective.prior_weight != 1 and not (recipe.data.prior or recipe.data.prior_prompt):
        raise RecipeError("objective.prior_weight is for data.prior or data.prior_prompt. Leave it out, or give one.")
    predicts = model.task.predicts(model) if hasattr(model.task, "predicts") else ""
    if objective.label_smoothing and (predicts or getattr(model.task, "kind", "") == "regression"):
        raise RecipeError("objective.label_smoothing is for classes, and these rows have none. Leave it out.")
    if idle := [name for name in NOISING if getattr(objective, name) and not predicts]:
        raise RecipeError(f"objective.{idle[0]} is for text-to-image, which learns from noise. Leave it out.")
    if objective.min_snr and predicts == "flow":
        raise RecipeError("objective.min_snr is not defined for flow matching, as this base does it. Leave it out.")


def _classes_without_rows(records: Sequence[Record], encoded: Encoded) -> list[str]:
    """Said of classes that cannot be learned because all their rows are skipped."""
    used = {e.source for e in encoded.examples} if encoded.faults else set()
    labelled = [r for r in records if isinstance(r, Classified) and isinstance(r.label, str) and encoded.faults]
    lost = sorted({str(r.label) for r in labelled} - {str(r.label) for r in labelled if r.source in used})
    named = f"No training row of {', '.join(lost)} can be used, but the model gets the label"
    return [f"{named}: mend the rows, or remove them all."] if lost else []


def _refuse_weightless(encoded: Mapping[str, Encoded]) -> None:
    for name, found in encoded.items():
        if not any(e.trained for e in found.examples):
            raise DataError(f"Every row of {name} is skipped or has weight 0: there is nothing to learn or to measure.")


def _weigh_classes(recipe: Recipe, task: Task, examples: Sequence[Example]) -> None:
    """Fold class weights into the training rows' weights, in place."""
    wanted = recipe.objective.class_weights if isinstance(recipe.objective, Supervised) else None
    if wanted is None:
        return
    labels = getattr(task, "labels", None)
    if not labels or getattr(task, "kind", "") != "single_label":
        raise RecipeError("objective.class_weights is for classifiers with one label a row. Leave it out.")
    weight_C = class_weights(wanted, labels, examples)
    for example in examples:
        soft = example.target.dtype.kind == "f"
        example.weight[:] *= float(example.target @ weight_C) if soft else weight_C[example.target[0]]
