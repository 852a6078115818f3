"""Plain data parallelism over torch.distributed: every process computes its share of a step, and sums are added up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process's place among all that share the run. One process needs no communication."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def add(self, tensors: Iterable[Any]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.world == 1:
            return
        import torch.distributed as dist
        from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

        listed = list(tensors)
        flat = _flatten_dense_tensors(listed)
        dist.all_reduce(flat)
        for tensor, summed in zip(listed, _unflatten_dense_tensors(flat, listed), strict=True):
            tensor.copy_(summed)

    def add_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums of named numbers over all processes, in fp64; a process may lack names that others have."""
        if self.world == 1:
            return dict(numbers)
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, dict(numbers))
        return {name: sum(part.get(name, 0.0) for part in gathered) for name in sorted(set().union(*gathered))}

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, those of the first one first."""
        if self.world == 1:
            return items
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.add_numbers({"flag": float(flag)})["flag"] > 0


def join() -> Processes:
    """Join the processes that torchrun started; alone where there are none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Processes(dist.get_rank(), world)
