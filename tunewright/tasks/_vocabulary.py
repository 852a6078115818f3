"""Tokens that are added to a vocabulary, and those that a base has but never learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewright.tasks._quiet import quiet
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 0.9999
"""The cosine above which two rows of a head count as parallel: what rounding to bf16 leaves of equal ones."""


def never_learned(head_VH: Tensor, token: int) -> bool:
    """Whether a row is 0, or parallel to that of another token, as no two rows are that were ever trained on."""
    import torch.nn.functional as F  # noqa: N812

    row_H = head_VH[token].float()
    alike = sum(
        int((F.cosine_similarity(part.float(), row_H, dim=-1) > PARALLEL).sum()) for part in head_VH.split(8192)
    )
    return alike != 1  # itself; a row of zeros is not even like itself


def add_tokens(model: Model, tokens: Sequence[str]) -> None:
    """Add special tokens; embeddings and head grow by a row each, which begins as the mean of the others and trains.

    A token that the vocabulary has already becomes special, and its row trains too.
    """
    tokenizer = model.processor
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    model.new_tokens = tuple(tokenizer.convert_tokens_to_ids(list(tokens)))
    grow_vocabulary(model)
    there = f" ({', '.join(known)} were there already)" if known else ""
    model.notices.append(f"Special tokens whose rows train: {', '.join(tokens)}{there}.")


def grow_vocabulary(model: Model) -> None:
    """Give every token of the tokenizer a row in embeddings and head."""
    import torch

    if len(model.processor) > model.module.get_input_embeddings().num_embeddings:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.module.resize_token_embeddings(len(model.processor))
