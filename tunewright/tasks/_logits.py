"""The logits of a language model: only where they are wanted, their entropy, and those of its routers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunewright.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def only_at(module: nn.Module, picked_BT: Tensor) -> Iterator[None]:
    """Inside, the model's own head sees only the picked positions, and the logits have shape [1, N, V].

    A hook in front of the head drops the other hidden states. So scaling or soft-capping that a model applies to
    its logits (Gemma, Cohere, Granite) stays the model's own, which a product with the head's weight would lose.
    Virtual tokens of prompt tuning come first and are dropped with the rest.
    """
    head = module.get_output_embeddings()  # type: ignore[operator]

    def pick(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTH = arguments[0][:, -picked_BT.shape[1] :]
        return (hidden_BTH[picked_BT][None], *arguments[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def router_balance(module: nn.Module, router_logits: Sequence[Tensor], batch: Batch) -> Tensor:
    """The load-balancing loss of Switch Transformers (arXiv 2101.03961, eq. 4), per row, summed over rows.

    For a row: experts · Σ_e f_e · P_e, with f_e the share of its tokens that go to expert e among the top k and P_e the
    mean router probability, averaged over layers. Taken per row and not over the batch, as transformers does, because
    a product of batch means would make the gradient depend on how a step is cut into forward passes.
    """
    import torch

    top_k = module.config.get_text_config().num_experts_per_tok  # type: ignore[union-attr, operator]
    row_N = batch.sequence[batch.mask]
    share_N1 = (1.0 / row_N.bincount())[row_N][:, None]
    total = share_N1.new_zeros(())
    for logits in router_logits:
        logits_BTE = logits.float().reshape(len(batch.mask), -1, logits.shape[-1])[:, -batch.mask.shape[1] :]
        probability_NE = logits_BTE[batch.mask].softmax(-1)
        chosen_NE = torch.zeros_like(probability_NE).scatter(-1, probability_NE.topk(top_k, -1).indices, 1.0)
        empty_BE = probability_NE.new_zeros(int(row_N.max()) + 1, probability_NE.shape[-1])
        f_BE = empty_BE.index_add(0, row_N, chosen_NE * share_N1)
        P_BE = empty_BE.index_add(0, row_N, probability_NE * share_N1)
        total = total + probability_NE.shape[-1] * (f_BE * P_BE).sum()
    return total / len(router_logits)


def entropy_of(logits_NV: Tensor) -> Tensor:
    """-Σ p ln p of each row, in nats."""
    log_p_NV = logits_NV.log_softmax(-1)
    return -(log_p_NV.exp() * log_p_NV).sum(-1)


def in_full(logits: Tensor) -> Tensor:
    """In fp32 at least: softmax and its logarithm lose too much in half precision."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))
