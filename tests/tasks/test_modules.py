"""Any torch module as a base: by the name of its factory, or as an object."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

import tunewright as tw
from benchmarks.vision_models import CIFAR10, RESNET20_IMAGE, SQUEEZENET_IMAGE, SqueezeNet
from tests import networks
from tests.contracts.steps import NOWHERE
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import pictures
from tunewright.errors import BaseModelError, RecipeError, TunewrightError
from tunewright.recipe import make_recipe
from tunewright.tasks import _factories
from tunewright.tasks._module_config import ModuleConfig, Preprocessing
from tunewright.tasks._modules import begin, laid_out, layout_of

TASK = "image-classification"
IMAGE = {"resize": 16, "crop": 16}
OWN = [f"class {i}" for i in (2, 0, 1)]  # in an order of its own


@pytest.fixture(autouse=True)
def _a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(monkeypatch)


def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing was named or given yet."""
    monkeypatch.setattr(_factories, "_allowed", {})
    monkeypatch.setattr(_factories, "_given", {})


def document(output: Path, base: str = "tests.networks:net", **changes: Any) -> Any:
    module = {"image": IMAGE, **changes.pop("module", {})}
    return recipe(base, output, task=TASK, module=module, **{"method": "full", **changes})


def pixels(rows: int = 4) -> torch.Tensor:
    prepare = Preprocessing(**IMAGE).processor()
    images = [Image.open(BytesIO(row["image"])) for row in pictures(rows)]
    return prepare(images, return_tensors="pt")["pixel_values"]


def answers(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(pixels()).flatten(1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(networks.lived(networks.Net(3)).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def three() -> torch.nn.Module:
    return networks.Net(3)


# What is what in a module


@pytest.mark.parametrize(
    "factory, image, head, blocks",
    [
        ("squeezenet", SQUEEZENET_IMAGE, "classifier.1", [f"features.{i}" for i in (0, 3, 4, 6, 7, 9, 10, 11, 12)]),
        ("resnet20", RESNET20_IMAGE, "linear", ["conv1", "bn1", "layer1", "layer2", "layer3"]),
    ],
)
def test_head_and_blocks_are_found(factory: str, image: Any, head: str, blocks: list[str]) -> None:
    found = layout_of(laid_out(f"benchmarks.vision_models:{factory}", ModuleConfig(image=image)))
    assert found and (found.head, found.blocks) == (head, blocks)


def test_a_wide_layer_is_not_the_trunk() -> None:
    """Layers are counted, not parameters; and the head is none of the blocks."""
    found = layout_of(laid_out("tests.networks:Wide", ModuleConfig(image=IMAGE)))
    assert found and (found.head, found.blocks) == ("classifier.3", ["features", "classifier"])


def test_blocks_are_those_that_are_named() -> None:
    config = ModuleConfig(image=IMAGE, blocks=["stem", "layer[12].*"])
    found = layout_of(laid_out("tests.networks:net", config))
    assert found and found.blocks == ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]


@pytest.mark.parametrize(
    "factory, config, said",
    [
        ("Maps", {}, "answers with 245 numbers, and its last layer, classifier.1, does not give them"),
        ("Boxes", {}, "has to answer with logits"),
        ("Gray", {}, r"cannot be fed images of \[B, 3, 16, 16\].*module.image .*channels"),
        ("Net", {"image": {**IMAGE, "channels": 1}}, r"cannot be fed images of \[B, 1, 16, 16\].*channels"),
        ("LooseNorms", {}, r"without running statistics \(layer2.1\): .*track_running_stats=True"),
        ("Softmax", {}, "answers with probabilities .* has to answer with logits"),
        ("Sigmoid", {}, r"probabilities \(from its nn.Sigmoid\).*end without its sigmoid"),
        ("Auxiliary", {}, r"in training mode .*answers with tuple.*auxiliary outputs off"),
        ("Strict", {}, r"in training mode .*RuntimeError: not trained in this way"),
        ("Lazy", {}, "lazy layers, .*: conv, fc. Run it once on images"),
        ("Net", {"head": "layer1"}, "its last layer, layer1.0.wide, does not give them"),
        ("Net", {"head": "norm"}, "module.head: norm names no linear layer"),
        ("Net", {"blocks": ["layer9"]}, "module.blocks: layer9 matches no module"),
        ("Net", {"blocks": ["layer1", "layer1.*"]}, "lies within layer1"),
        ("Net", {"labels": ["a", "b"]}, "names 2 classes, and tests.networks:Net has 5 outputs"),
    ],
)
def test_a_module_that_does_not_fit_what_is_said_of_it(factory: str, config: Any, said: str) -> None:
    size = {"image": {"resize": 32, "crop": 32}} if factory == "Maps" else {"image": IMAGE}
    with pytest.raises(BaseModelError, match=said):
        laid_out(f"tests.networks:{factory}", ModuleConfig.model_validate({**size, **config}))


def test_trying_a_module_in_training_moves_nothing() -> None:
    statistics, random = dict(networks.lived_net().named_buffers()), torch.get_rng_state()
    module = laid_out("tests.networks:lived_net", ModuleConfig(image=IMAGE))
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in module.named_buffers())
    assert torch.equal(torch.get_rng_state(), random) and not any(m.training for m in module.modules())


# Code that is no use, and weights that are none


@pytest.mark.parametrize(
    "base, said",
    [
        ("nowhere.at_all:net", "no Python module nowhere"),
        ("tests.networks:nett", "has no nett. Did you mean net"),
        ("tests.networks:with_arguments", "cannot be called without arguments .*classes.* base=module"),
        ("tests.networks:a_number", "returns int, and has to return a torch.nn.Module"),
        ("tests.networks:SHIFT", "no function or class"),
        ("tests.networks:broken", "fails with KeyError: 'nothing'"),
        ("tests.networks:FixedView", "With a head of 3 outputs, tests.networks:FixedView does not answer with 3"),
    ],
)
def test_a_factory_that_makes_no_base(base: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=said):
        tw.train(document(tmp_path / "run", base))
    assert not (tmp_path / "run").exists(), "a refused recipe leaves nothing behind"


def test_weights_that_do_not_fit_are_named(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    state["stem.weight"] = state["stem.weight"][:4].clone()
    state["extra"] = state.pop("norm.bias")
    save_file(state, weights)
    with pytest.raises(BaseModelError, match="in 3 tensors") as found:
        tw.train(document(tmp_path / "run", weights=str(weights)))
    assert "stem.weight: [4 × 3 × 3 × 3] in the file, [8 × 3 × 3 × 3] in the module" in str(found.value)
    assert "extra: [8] is not in the module" in str(found.value)
    assert "norm.bias: [8] is not in the file" in str(found.value)


def test_weights_that_are_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="There is no file"):
        tw.train(document(tmp_path / "run", weights=str(tmp_path / "none.safetensors")))
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(BaseModelError, match=r"A pickle .* is not opened"):
        tw.train(document(tmp_path / "run", weights=str(tmp_path / "weights.pt")))


def test_a_head_of_other_classes_need_not_be_in_the_file(weights: Path, tmp_path: Path) -> None:
    """It is replaced anyway, unless its classes were named."""
    run = tw.train(document(tmp_path / "run", weights=str(weights)))
    assert any("new head for 3 classes" in notice for notice in run.info["notices"])
    start, given = load_file(run.folder / "start/base/model.safetensors"), load_file(weights)
    assert all(torch.equal(start[name], given[name]) for name in given if not name.startswith("fc."))
    with pytest.raises(BaseModelError, match=r"fc.weight: \[3 × 20\] in the file, \[5 × 20\] in the module"):
        labels = [*OWN, "d", "e"]
        tw.train(document(tmp_path / "other", weights=str(weights), module={"labels": labels}))


@pytest.mark.parametrize("option", [{"weights": "w.safetensors"}, {"module": {"image": IMAGE}}])
def test_options_of_a_module_are_refused_for_another_base(option: Any, tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(option))}: for a base that is a torch module"):
        tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, **option))


def test_a_module_reads_images_only(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no torch modules"):
        tw.train(recipe("tests.networks:net", tmp_path / "run", task="text-classification"))


def test_what_is_no_fault_of_a_module() -> None:
    """log-softmax changes nothing of the softmax behind it; a lazy layer that has run is none any more; a gate."""
    for name in ("LogSoftmax", "lazy_once_run", "Gated"):
        assert layout_of(laid_out(f"tests.networks:{name}", ModuleConfig(image=IMAGE)))
    with pytest.raises(BaseModelError, match="lazy layers"):
        tw.train(base=networks.Lazy(), module={"image": IMAGE}, data=pictures(6), output=str(NOWHERE))


@pytest.mark.parametrize(
    "image", [{"crop": 300}, {"std": [0.1, 0, 1]}, {"channels": 1, "mean": [0.1, 0.2, 0.3]}, {"mean": [0.1]}]
)
def test_preprocessing_that_means_nothing(image: Any) -> None:
    with pytest.raises(RecipeError, match=r"module\.image"):
        make_recipe({"base": "a:b", "data": "x", "module": {"image": image}})


# Images in grey

GREY = {"image": {**IMAGE, "channels": 1}}


@pytest.mark.parametrize("method", ["full", "lora", "adapter"])
def test_a_module_for_grey_images(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in colour are converted, in training with augmentation too, and ever after by what lies with the model."""
    made = document(
        tmp_path / "run", "tests.networks:Gray", module=GREY, method=method,
        training={"head_first": 1, "learning_rate": 0.02}, data={"augment": {"mixup": 0.2}},
    )  # fmt: skip
    run = tw.train(made)
    fresh(monkeypatch)
    rows = pictures(4)
    model = tw.load(run.folder)
    image = Image.open(BytesIO(rows[0]["image"])).convert("L").resize((19, 16), Image.Resampling.BILINEAR)
    values = (np.asarray(image.crop((1, 0, 17, 16))) / 255 - 0.459) / 0.226
    with torch.no_grad():
        expected = model.module(torch.tensor(values, dtype=torch.float32)[None, None]).softmax(-1)[0]
    said = tw.predict(model, rows[0]["image"])[0]["probabilities"]
    assert list(said.values()) == pytest.approx(expected.tolist(), abs=1e-4)
    assert tw.evaluate(run.folder, rows)["rows"] == 4
    ends = [tw.predict(f"{run.folder}@{alpha}", rows[0]["image"])[0]["probabilities"] for alpha in (0, 0.5, 1)]
    assert ends[0] != ends[1] != ends[2] and ends[2] == said
    assert len(tw.interpolate(run.folder, alphas="0:1:0.5")["alphas"]) == 3
    again = tw.train(recipe(str(run.folder), tmp_path / "again", task=TASK, method=method))
    assert tw.predict(again.folder, rows[0]["image"])[0]["probabilities"].keys() == said.keys()
    assert tw.dry_run(made)["total"] == run.info["parameters"]["total"] + 26


def test_grey_is_what_a_file_says_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    begin("tests.networks:Gray", ModuleConfig.model_validate(GREY), None, folder)
    said = json.loads((folder / "preprocessor_config.json").read_text())
    assert said["image_mean"] == [0.459] and said["do_convert_rgb"] is False


# From its start to its end


def test_plain_torch_loads_what_was_trained(tmp_path: Path) -> None:
    run = tw.train(document(tmp_path / "run"))
    page = run.report.read_text(encoding="utf-8")
    assert "from tests.networks:net" in page and "AutoModel" not in page and "module.load_state_dict(" in page
    plain = networks.Net(3)
    plain.load_state_dict(load_file(run.folder / "model/model.safetensors"))
    assert torch.equal(answers(plain), answers(run.model.module))
    assert type(run.model.module) is networks.Net
    assert not torch.equal(answers(plain), answers(networks.Net(3)))


@pytest.mark.parametrize("method", [{"type": "lora", "rank": 4}, {"type": "lora", "rank": 2, "dora": True}])
def test_peft_itself_loads_an_adapter_over_the_module(method: Any, tmp_path: Path) -> None:
    run = tw.train(document(tmp_path / "run", method=method))
    plain, start = networks.Net(3), load_file(run.folder / "start/base/model.safetensors")
    plain.load_state_dict({name: t for name, t in start.items() if not name.startswith("fc.")}, strict=False)
    assert torch.equal(answers(PeftModel.from_pretrained(plain, str(run.folder / "model"))), answers(run.model.module))


@pytest.mark.parametrize("base", ["tests.networks:net", "tests.networks:Convolving"])
@pytest.mark.parametrize("method", ["full", "freeze", "lora", "adapter"])
def test_the_path_leads_from_start_to_end(base: str, method: str, tmp_path: Path) -> None:
    """A new head learns alone first. RUN@0, RUN@0.5 and RUN are where they should be."""
    run = tw.train(document(tmp_path / "run", base, method=method, training={"head_first": 1, "learning_rate": 0.05}))
    start, half, end = (answers(tw.load(run.folder, alpha=alpha).module) for alpha in (0, 0.5, 1))
    assert not torch.equal(start, end) and not torch.equal(half, start) and not torch.equal(half, end)
    head = load_file(run.folder / "start/head.safetensors")
    plain = sys.modules["tests.networks"].Net(3) if base.endswith("net") else networks.Convolving(3)
    plain.load_state_dict({**load_file(run.folder / "start/base/model.safetensors"), **head})
    assert torch.equal(answers(plain), start)
    assert tw.predict(f"{run.folder}@0.5", pictures(1)[0]["image"])[0]["label"].startswith("class")


def test_a_head_whose_classes_are_named_is_kept(weights: Path, tmp_path: Path) -> None:
    """In the order of its outputs, whatever that of the rows is; so the start is the module as it came."""
    made = document(tmp_path / "run", f"{__name__}:three", weights=str(weights), module={"labels": OWN})
    run = tw.train(made)
    assert run.info["labels"] == OWN and run.info["new"] == []
    plain = networks.Net(3)
    plain.load_state_dict(load_file(weights))
    assert torch.equal(answers(tw.load(run.folder, alpha=0).module), answers(plain))


def test_the_module_begins_the_same_for_the_same_seed(tmp_path: Path) -> None:
    """A factory draws weights at random where it is given none."""
    one, again, other = (
        tw.train(document(tmp_path / name, training={"seed": seed, "max_steps": 1}))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    starts = [(run.folder / "start/base/model.safetensors").read_bytes() for run in (one, again, other)]
    assert starts[0] == starts[1] != starts[2]
    assert left_behind(one.folder) == left_behind(again.folder)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut() -> None:
        raise KeyError("cut")

    training = {"checkpoint_every": 1}
    whole = tw.train(document(tmp_path / "whole", training=training))
    with pytest.raises(KeyError):
        tw.train(document(tmp_path / "cut", training=training), watchers=[stop_at(5, cut)])
    fresh(monkeypatch)
    assert left_behind(tw.resume(tmp_path / "cut").folder) == left_behind(whole.folder)


def test_a_run_goes_on_from_another_one(tmp_path: Path) -> None:
    first = tw.train(document(tmp_path / "first"))
    for method in ("full", "lora"):
        second = tw.train(recipe(str(first.folder), tmp_path / method, task=TASK, method=method))
        assert torch.equal(answers(tw.load(second.folder, alpha=0).module), answers(first.model.module))
        assert second.info["new"] == [] and second.info["factory"]["name"] == "tests.networks:net"


def test_check_and_dry_run(tmp_path: Path) -> None:
    found = tw.check(document(tmp_path / "run", method={"type": "freeze", "last": 1}))
    assert found["task"] == TASK and not (tmp_path / "run").exists()
    shown = tw.dry_run(document(tmp_path / "run", method={"type": "freeze", "last": 1}))
    assert any(name.startswith("layer3") for name in shown["names"])
    assert not any(name.startswith(("stem", "layer1", "layer2")) for name in shown["names"])


def test_two_runs_are_compared_and_mixed(tmp_path: Path) -> None:
    training = {"head_first": 1, "max_steps": 3}
    runs = [
        tw.train(document(tmp_path / n, training={**training, "learning_rate": r}))
        for n, r in (("a", 0.01), ("b", 0.02))
    ]
    found = tw.compare(runs[0].folder, runs[1].folder, data=pictures(9))
    assert [one["rows"] for one in found["sets"].values()] == [9]
    shutil.copy(runs[0].folder / "start/head.safetensors", runs[1].folder / "start/head.safetensors")
    tw.soup([runs[0].folder, runs[1].folder], tmp_path / "soup")
    ends = [load_file(run.folder / "model/model.safetensors")["stem.weight"] for run in runs]
    assert torch.allclose(load_file(tmp_path / "soup/model.safetensors")["stem.weight"], (ends[0] + ends[1]) / 2)


# Whose code is run


def test_no_code_is_run_because_a_folder_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tw.train(document(tmp_path / "run"))
    expected = answers(run.model.module)
    copied = shutil.copytree(run.folder / "model", tmp_path / "copied")
    fresh(monkeypatch)
    for use in (lambda: tw.load(copied), lambda: tw.predict(copied, pictures(1)[0]["image"])):
        with pytest.raises(BaseModelError, match=r"no code is run because a folder names it.*tw\.load"):
            use()
    with pytest.raises(BaseModelError, match="no code is run"):
        tw.train(recipe(str(copied), tmp_path / "next", task=TASK, method="full"))
    for base in ("tests.networks:net", networks.Net(), networks.net):
        fresh(monkeypatch)
        assert torch.equal(answers(tw.load(copied, base=base).module), expected)
    fresh(monkeypatch)
    assert torch.equal(answers(tw.load(run.folder).module), expected), "to name the run is enough"


def test_other_code_of_the_same_name_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same names and shapes, the weights would fit."""
    run = tw.train(document(tmp_path / "run"))
    monkeypatch.setattr(networks, "SHIFT", 0.5)
    with pytest.raises(BaseModelError, match="its code has changed"):
        tw.load(run.folder)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of its own, which is the working directory; nothing of it stays behind."""
    (tmp_path / "mine").mkdir()
    code = "from tests.networks import Net\n\ndef make():\n    return Net()\n"
    (tmp_path / "mine/my_own_networks.py").write_text(code)
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_own_networks", None)


def test_code_beside_the_recipe_is_found_and_found_again(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tw.train(document(elsewhere / "run", "my_own_networks:make"))
    expected = answers(run.model.module)
    sys.modules.pop("my_own_networks")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(elsewhere / "mine")])
    monkeypatch.chdir(elsewhere)
    fresh(monkeypatch)
    assert torch.equal(answers(tw.load(run.folder).module), expected)


# A module as an object


def options(output: Path, **training: Any) -> dict[str, Any]:
    """All of a recipe but its base."""
    found = document(output, training=training).model_dump(mode="json", exclude_unset=True)
    found.pop("base")
    return {**found, "data": {"train": pictures(12), "validation": pictures(17)[12:]}}


def test_an_object_is_a_base_and_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = networks.lived(networks.with_arguments(4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run = tw.train(base=module, **options(tmp_path / "run"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    start = load_file(run.folder / "start/base/model.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    expected = answers(run.model.module)
    fresh(monkeypatch)
    assert torch.equal(answers(tw.load(run.folder, base=networks.Net(7)).module), expected), "only its shape is used"


def test_an_object_goes_on_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut() -> None:
        raise KeyError("cut")

    class Mine(networks.Net):
        """Nobody can import it."""

    module = networks.lived(Mine(4))
    whole = tw.train(base=module, **options(tmp_path / "whole", checkpoint_every=1))
    with pytest.raises(KeyError):
        tw.train(base=module, **options(tmp_path / "cut", checkpoint_every=1), watchers=[stop_at(5, cut)])
    fresh(monkeypatch)
    with pytest.raises(BaseModelError, match=r"has no Mine.*tw\.resume\(RUN, base=module\)"):
        tw.resume(tmp_path / "cut")
    assert left_behind(tw.resume(tmp_path / "cut", base=Mine(4)).folder) == left_behind(whole.folder)


def test_two_objects_of_one_class_are_told_apart(tmp_path: Path) -> None:
    one, other = networks.lived(networks.Net(4)), networks.Net(4)
    runs = [tw.train(base=module, **options(tmp_path / name)) for name, module in (("one", one), ("other", other))]
    assert runs[0].info["factory"]["name"] == "tests.networks:Net"
    assert runs[1].info["factory"]["name"] == "tests.networks:Net#2"
    for run, module in zip(runs, (one, other), strict=True):
        start = load_file(run.folder / "start/base/model.safetensors")
        assert torch.equal(start["stem.weight"], module.state_dict()["stem.weight"])


def test_what_an_object_cannot(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="in this process alone"):
        tw.train(base=networks.Net(), **options(tmp_path / "run", processes=2))
    run = tw.train(base=networks.Net(), **options(tmp_path / "run"))
    with pytest.raises(BaseModelError, match="give a torch module"):
        tw.load(run.folder, base=3)


def test_a_run_that_is_made_of_no_module(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, method="head"))
    with pytest.raises(TunewrightError, match="not made of a torch module"):
        tw.load(run.folder, base=networks.Net())


# Real networks


def test_resnet20_knows_its_ten_classes_without_training(shared: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(shared / "data/cifar10/test.parquet").slice(0, 500).to_pylist()
    rows = [{"image": row["image"]["bytes"], "label": row["label"]} for row in rows]
    run = tw.train(
        base="benchmarks.vision_models:resnet20",
        weights=shared / "models/resnet20_cifar10/model.safetensors",
        module={"labels": CIFAR10, "image": RESNET20_IMAGE},
        data={"train": rows[:40], "validation": 0},
        method="head",
        training={"max_steps": 1},
        evaluation={"samples": 0},
        output=tmp_path / "run",
    )
    found = tw.evaluate(f"{run.folder}@0", rows)
    assert found["scores"]["metrics"]["accuracy"]["value"] > 0.78


def test_squeezenet_knows_ants_and_bees(shared: Path) -> None:
    import pyarrow.parquet

    module = SqueezeNet()
    state = load_file(shared / "models/squeezenet1_1_imagenet/model.safetensors")
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    rows = pyarrow.parquet.read_table(shared / "data/ants_bees/test.parquet").to_pylist()[::5]
    prepare = Preprocessing(**SQUEEZENET_IMAGE).processor()
    images = [Image.open(BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    with torch.no_grad():
        answer_N = module.eval()(prepare(images, return_tensors="pt")["pixel_values"]).argmax(-1).tolist()
    imagenet = {"ants": 310, "bees": 309}
    right = [answer == imagenet[row["label"]] for answer, row in zip(answer_N, rows, strict=True)]
    assert sum(right) / len(right) > 0.35, "of a thousand classes"
