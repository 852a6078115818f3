"""The rules of the house that a machine can hold: who imports whom, how long the loop is, which options there are."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tunewright.methods import METHODS
from tunewright.objectives import OBJECTIVES
from tunewright.recipe import Recipe
from tunewright.tasks import MODULES, task_class

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tunewright"
FOLDERS = ("tasks", "methods", "objectives")


def test_imports_go_down_only() -> None:
    """The layers are in pyproject.toml; a new module of the package must stand in one of them."""
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_every_module_has_its_layer() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name.strip() for line in contracts[0]["layers"] for name in line.split("|")}
    modules = {f"tunewright.{p.stem}" for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert modules - {"tunewright.__init__"} <= layers


def test_every_module_is_in_the_house() -> None:
    """The table of docs/architecture.md says what is where."""
    said = (ROOT / "docs" / "architecture.md").read_text()
    modules = {p.name for p in PACKAGE.glob("*.py") if not p.name.startswith("__")}
    assert not {name for name in modules if f"`{name}`" not in said}


def imported(path: Path) -> set[str]:
    """Everything that a file imports, at its top or inside, as full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(folder: str) -> list[Path]:
    return sorted(p for p in (PACKAGE / folder).glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("path", [p for f in FOLDERS for p in files(f)], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_siblings_share_only_their_base(path: Path) -> None:
    """And helpers whose names begin with an underscore: so a new method is one new file."""
    siblings = {f"tunewright.{path.parent.name}.{p.stem}" for p in files(path.parent.name)}
    allowed = {name for name in siblings if name.rsplit(".", 1)[-1] == "base" or name.rsplit(".", 1)[-1][0] == "_"}
    assert not (imported(path) & siblings) - allowed


def test_nothing_above_asks_which_task_it_has() -> None:
    """Capabilities, never classes."""
    names = {"TextGeneration", "TextClassification", "ImageClassification", "TextToImage"}
    asked = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "tasks"
        and names & {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
    ]
    assert not asked


def test_pipelines_are_told_by_one_capability() -> None:
    """`Task.diffuses`, whatever methods a task happens to have."""
    asked = [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py") if '"pipeline")' in path.read_text()]
    assert not asked and [name for name in MODULES if task_class(name).diffuses] == ["text-to-image"]


def test_nothing_is_pickled() -> None:
    forbidden = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
    for path in PACKAGE.rglob("*.py"):
        assert not imported(path) & forbidden, path
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "eval", "exec"}, path


def test_the_loop_stays_short() -> None:
    assert len((PACKAGE / "engine" / "loop.py").read_text().splitlines()) < 250


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_central_types_can_be_read_in_a_minute(folder: str) -> None:
    assert len((PACKAGE / folder / "base.py").read_text().splitlines()) < 200


@pytest.mark.parametrize(
    "folder, found, mark",
    [("methods", METHODS, "METHOD = "), ("objectives", OBJECTIVES, "OBJECTIVE = "), ("tasks", MODULES, "TASK = ")],
)
def test_a_new_file_is_found(folder: str, found: Any, mark: str) -> None:
    marked = [path for path in files(folder) if f"\n{mark}" in path.read_text()]
    assert len(marked) == len(found)


# The ratchet: a new option is a conscious change, made here too.

OPTIONS = """
base weights task output
module.head module.blocks module.labels
module.image.resize module.image.crop module.image.channels module.image.interpolation module.image.scale
module.image.mean module.image.std
data.train data.validation data.test data.format data.columns data.labels data.overlength data.max_length
data.labeling.rules data.labeling.model data.labeling.ties data.labeling.accuracy data.labeling.certainty
data.labeling.balance data.labeling.uncovered data.labeling.confidence data.labeling.ignore_case
data.labeling.then_clean data.classes
data.on_bad_rows data.loss_on data.chat_template data.special_tokens
data.resolution data.caption_dropout data.cache_latents data.cache_captions
data.prior data.prior_prompt data.prior_images
data.augment.colour data.augment.crop data.augment.flip data.augment.mixup
method.lora.rank method.lora.alpha method.lora.dropout method.lora.targets method.lora.rslora method.lora.dora
method.lora.init method.lora.plus_ratio method.lora.experts method.lora.train_along
method.full.batch_norm method.freeze.last method.freeze.until method.freeze.batch_norm
method.adapter.variant method.adapter.width
method.peft.config method.textual_inversion.token method.textual_inversion.word method.textual_inversion.vectors
objective.supervised.label_smoothing objective.supervised.class_weights objective.supervised.router_loss
objective.supervised.min_snr objective.supervised.noise_offset objective.supervised.prior_weight
objective.preference.loss objective.preference.beta objective.preference.label_smoothing
objective.preference.length_normalized objective.preference.target_margin objective.preference.good_weight
objective.preference.bad_weight objective.reward.margin objective.reward.centring
objective.rl.algorithm objective.rl.rewards objective.rl.samples objective.rl.evaluation_samples
objective.rl.max_new_tokens
objective.rl.temperature objective.rl.passes objective.rl.parts objective.rl.clip objective.rl.clip_above
objective.rl.kl_coefficient objective.rl.kl_target objective.rl.normalization objective.rl.scale_groups
objective.rl.whiten objective.rl.missing_end objective.rl.gamma objective.rl.gae_lambda
objective.rl.value_clip objective.rl.value_weight objective.rl.prior_weight
training.epochs training.max_steps training.head_first training.zero_shot
training.learning_rate training.rate_multiplier training.schedule training.warmup
training.optimizer training.weight_decay training.gradient_clip training.batch training.batch_tokens
training.micro_batch_tokens
training.packing training.precision training.activation_checkpointing training.device training.processes training.seed
training.seeds training.layer_decay training.gradual_unfreezing training.prefix_cache
training.evaluate_every training.patience training.keep training.ema training.checkpoint_every training.track
training.snapshots evaluation.prompts evaluation.image_steps
evaluation.before evaluation.samples evaluation.generate evaluation.max_new_tokens evaluation.pattern
"""


def options(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        kinds = {"method": METHODS, "objective": OBJECTIVES}.get(name if not prefix else "")
        inner = [
            a
            for a in (field.annotation, *get_args(field.annotation))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if kinds:
            found += [option for kind, chosen in kinds.items() for option in options(chosen, f"{name}.{kind}.")]
        elif inner:
            found += options(inner[0], f"{prefix}{name}.")
        elif name != "type":
            found.append(f"{prefix}{name}")
    return found


def test_the_options_are_these() -> None:
    now = options(Recipe)
    print("\n".join(now))
    assert sorted(now) == sorted(OPTIONS.split())
