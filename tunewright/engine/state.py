"""All that changes during a run, and so all that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tunewright.engine.config import TrainingConfig
from tunewright.engine.depth import layer_rates
from tunewright.engine.memory import Memory
from tunewright.engine.optimizer import build_optimizer
from tunewright.errors import CheckpointError
from tunewright.methods import Full
from tunewright.methods.base import Method, trained_parameters
from tunewright.tasks.base import Model


class TrainState:
    """Trained weights, their average, moving statistics, the optimizer's state, and the best evaluation so far.

    Randomness and the data cursor are functions of (seed, step), so the step number is all there is to save of them.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        config: TrainingConfig,
        precision: str,
        critic: Any = None,
        memory: Memory | None = None,
    ) -> None:
        import torch

        self.parameters = trained_parameters(model.module)
        self.memory = memory or Memory()
        if critic is not None:
            self.parameters |= {f"{CRITIC}{name}": p for name, p in critic.named_parameters()}
        self.buffers = {n: b for n, b in model.module.named_buffers() if n.rsplit(".", 1)[-1] in MOVING}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()
        shares = {**layer_rates(model, config.layer_decay), **_critic_rates(self.parameters, method)}
        self.optimizer = build_optimizer(self.parameters, config, method, shares)
        self.decay = config.ema
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if config.ema else {}
        self.scaler = torch.amp.GradScaler(enabled=precision == "fp16")
        self.step = 0
        self.best: dict[str, float] | None = None
        self.stale = 0

    def update_average(self) -> None:
        """average ← d·average + (1 − d)·weights; d grows toward `ema` so that the start does not linger."""
        if self.decay is None:
            return
        d = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach(), 1 - d)

    def clip(self, largest: float) -> float:
        """Scale gradients down to this norm, those of a value net apart from the model's; the norm of the model's.

        It is not finite where either is not.
        """
        import torch

        found = []
        for critic in (False, True):
            group = [p for n, p in self.parameters.items() if p.grad is not None and n.startswith(CRITIC) == critic]
            found.append(torch.nn.utils.clip_grad_norm_(group, largest).item() if group else 0.0)
        return found[0] if math.isfinite(found[1]) else found[1]

    @contextmanager
    def judged_weights(self) -> Iterator[None]:
        """Inside, the model has the weights that are evaluated and saved: the average, where there is one."""
        if not self.average:
            yield
            return
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    def _swap_average(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def judge(self, loss: float) -> bool:
        """Note an evaluation; whether it is the best so far. One that is not finite never is."""
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best, self.stale = {"step": self.step, "loss": loss}, 0
            return True
        self.stale += 1
        return False

    def tensors(self) -> dict[str, Any]:
        """The tensors themselves, to be written before the next step: copies would double what a run needs."""
        import torch

        state = {f"weight/{n}": p for n, p in self.parameters.items()}
        state |= {f"buffer/{n}": b for n, b in self.buffers.items()}
        state |= {f"average/{n}": t for n, t in self.average.items()}
        state |= {f"memory/{n}": torch.from_numpy(a) for n, a in self.memory.arrays.items()}
        for name, values in self._optimizer_state().items():
            state |= {f"optimizer/{name}/{key}": v for key, v in values.items() if _is_tensor(v)}
        return dict(_apart(state))

    def numbers(self) -> dict[str, Any]:
        plain = {n: {k: v for k, v in s.items() if not _is_tensor(v)} for n, s in self._optimizer_state().items()}
        rest = {"scaler": self.scaler.state_dict(), "memory": self.memory.numbers}
        return {"best": self.best, "stale": self.stale, "optimizer": plain, **rest}

    def load(self, tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Become what `tensors` and `numbers` say. Raises CheckpointError where another run wrote them."""
        self._refuse_others(tensors)
        self.load_weights(tensors, "weight")
        for name in self.average:
            self.average[name].copy_(tensors[f"average/{name}"])
        values: dict[str, dict[str, Any]] = {name: dict(found) for name, found in numbers["optimizer"].items()}
        for key, tensor in tensors.items():
            if key.startswith("optimizer/"):
                name, field = key.removeprefix("optimizer/").split("/", 1)
                values.setdefault(name, {})[field] = tensor
        fresh = self.optimizer.state_dict()
        numbered = {i: _nested(values[name]) for i, name in enumerate(self._optimizer_names()) if name in values}
        self.optimizer.load_state_dict({**fresh, "state": numbered})
        self.scaler.load_state_dict(numbers["scaler"])
        kept = {name.removeprefix("memory/"): t for name, t in tensors.items() if name.startswith("memory/")}
        self.memory.arrays = {name: tensor.cpu().numpy() for name, tensor in kept.items()}
        self.memory.numbers = dict(numbers.get("memory", {}))
        self.step, self.best, self.stale = numbers["step"], numbers["best"], numbers["stale"]

    def _refuse_others(self, tensors: Mapping[str, Any]) -> None:
        here = {f"weight/{name}": p.shape for name, p in self.parameters.items()}
        here |= {f"average/{name}": p.shape for name, p in self.average.items()}
        there = {name: t.shape for name, t in tensors.items() if name.startswith(("weight/", "average/"))}
        apart = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if apart:
            raise CheckpointError(
                f"The checkpoint is of a run that trains other weights ({', '.join(apart[:3])}). "
                "Resume with the recipe that the run began with."
            )

    def load_weights(self, tensors: Mapping[str, Any], kind: str) -> None:
        """Take over the weights, or their average, and the moving statistics of a checkpoint."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"{kind}/{name}"])
        for name, buffer in self.buffers.items():
            buffer.copy_(tensors[f"buffer/{name}"])

    def _optimizer_names(self) -> list[str]:
        names = {id(p): n for n, p in self.parameters.items()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_state(self) -> dict[str, dict[str, Any]]:
        names = self._optimizer_names()
        return {names[i]: dict(_flat(state)) for i, state in self.optimizer.state_dict()["state"].items()}


def _apart(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors that share memory as copies (bitsandbytes' tables): the file's format knows no shared ones."""
    seen: set[int] = set()
    for name, tensor in state.items():
        yield name, tensor.detach().clone() if tensor.data_ptr() in seen else tensor.detach()
        seen.add(tensor.data_ptr())


CRITIC = "critic."


def _critic_rates(names: Iterable[str], method: Method) -> dict[str, float]:
    """A value net trains whole: at the rate of full training, whatever that of the method is."""
    share = min(1.0, Full.learning_rate / method.learning_rate)
    return {name: share for name in names if name.startswith(CRITIC)}


MOVING = ("running_mean", "running_var", "num_batches_tracked")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Mappings within mappings (bitsandbytes keeps its state so) as one, with keys joined by slashes."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What `_flat` was made of."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, key = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = value
    return nested


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")
