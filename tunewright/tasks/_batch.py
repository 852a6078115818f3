"""What goes into a forward pass, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows on a device. `target`, `weight`, `mask` and `sequence` are [B, T]; a soft target is [B, C], weight [B, 1].

    `mask` is true where a position is no padding; `sequence` numbers the rows of the batch that positions belong to,
    so that per-row sums survive packing. `prior` [B, 1] is true for rows of the class, see `Example`.
    Of elements (see `data/groups.py`): `element_S` numbers the element that each of the S sequences belongs to,
    `branch` [B, T] the parts that share a beginning (0 there, -1 in padding), and `fixed` is what was fixed of them,
    [S] or [B, T].
    """

    inputs: dict[str, Tensor]
    target: Tensor
    weight: Tensor
    mask: Tensor
    sequence: Tensor
    sources: tuple[str, ...]
    prior: Tensor | None = None
    element_S: Tensor | None = None
    branch: Tensor | None = None
    fixed: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: Any) -> Batch:
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")}
        for name in ("inputs", "fixed"):
            moved[name] = {key: value.to(device) for key, value in getattr(self, name).items()}
        return replace(self, **moved)

    def per_sequence(self, values_BT: Tensor) -> Tensor:
        """Sums over the positions with weight of each of the S sequences, [S]."""
        assert self.element_S is not None
        picked_BT = self.weight != 0
        return values_BT.new_zeros(len(self.element_S)).index_add(0, self.sequence[picked_BT], values_BT[picked_BT])


@dataclass(frozen=True)
class Likelihood:
    """What `nll` returns.

    Attributes:
        nll_BT: negative log-likelihood in nats, 0 where the weight is 0; squared error for a regression.
        correct_BT: whether the most likely answer is the target; None where that means nothing.
        router: the router's balance loss summed over rows, for mixtures of experts that were asked for it.
        entropy_BT: that of the distribution at each position in nats, where it was asked for.
    """

    nll_BT: Tensor
    correct_BT: Tensor | None = None
    router: Tensor | None = None
    entropy_BT: Tensor | None = None


@dataclass(frozen=True)
class Predictions:
    """What a model answered on N encoded rows; `kind` names the fields that are filled.

    single_label, multi_label: `output_NC` probabilities, `gold` class indices [N], distributions or labels [N, C].
    regression: `output_NC` and `gold`, [N, 1].
    likelihood: `nll_N` summed over a row's positions with weight, how many those are, how many the model got right.
    preference: `score_S` of each answer to N prompts, the best of a prompt first, `element_S` the number of its prompt,
        `length_S` its length; of a language model the score is a log-likelihood, and `start_S` that at the run's start.
    rated: the same of one answer to each of N prompts, with `good_S`: whether it is good.
    reward: of an answer that was drawn to each of N prompts its text, and by name [N] each what it got: `reward`, the
        parts of it, `kl` from the run's start in nats, `length` in tokens.
    Of the last three `group_N` is the number of the prompt, which several rows may share; None: each has its own.
    """

    kind: str
    sources: list[str]
    output_NC: np.ndarray | None = None
    gold: np.ndarray | None = None
    nll_N: np.ndarray | None = None
    count_N: np.ndarray | None = None
    correct_N: np.ndarray | None = None
    score_S: np.ndarray | None = None
    element_S: np.ndarray | None = None
    length_S: np.ndarray | None = None
    start_S: np.ndarray | None = None
    good_S: np.ndarray | None = None
    told: Mapping[str, np.ndarray] | None = None
    answers: tuple[str, ...] = ()
    group_N: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What a language model generated, and whether it ended by itself: with a token that it was taught to end with."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Drawn:
    """An answer that was drawn at random: its tokens, -log of the probability of each, its text.

    `ended` says whether its last token is one that ends an answer. It is not part of the text.
    """

    tokens: list[int]
    nll: np.ndarray
    ended: bool
    text: str
