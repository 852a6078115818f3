"""Tokens with a weight each, and how they are made to fit into a model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tunewright.data.config import Overlength
from tunewright.errors import DataError, counted


@dataclass(frozen=True)
class Rendered:
    """One sequence. `weights[i]` counts the loss of predicting `tokens[i]` from those before it; `weights[0]` is 0."""

    tokens: list[int]
    weights: list[float]
    source: str

    def without_tail(self) -> Rendered:
        """Cut behind the last token with weight, as of a template's newline after the end of a turn.

        Attention is causal: nothing that is learned or measured at a token sees those after it.
        """
        end = max((i for i, weight in enumerate(self.weights, 1) if weight), default=len(self.tokens))
        return Rendered(self.tokens[:end], self.weights[:end], self.source)


@dataclass(frozen=True)
class Limit:
    """The tokens that a row may have, and those that the model can hold: there `data.max_length` has its end."""

    tokens: int
    context: int

    def less(self, reserved: int) -> Limit:
        """What is left beside tokens that are kept free."""
        return Limit(self.tokens - reserved, self.context - reserved)

    @property
    def can_be_raised(self) -> bool:
        return self.tokens < self.context

    def __str__(self) -> str:
        return f"{self.tokens} tokens" + ("" if self.can_be_raised else ", all that the model can hold")


@dataclass(frozen=True)
class Fitted:
    """Sequences that fit, and the sources of those that did not as they were."""

    rendered: list[Rendered]
    truncated: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)

    def notices(self) -> list[str]:
        """What was done, in a line each."""
        done = {"truncated": self.truncated, "dropped": self.dropped, "split into windows": self.split}
        return [f"{len(sources)} too long: {what} ({_some(sources)})" for what, sources in done.items() if sources]


def fit(
    rendered: Sequence[Rendered], limit: Limit, policy: Overlength, ways: Sequence[str] = ("truncate", "drop", "split")
) -> Fitted:
    """Make sequences fit that are longer than the limit.

    Args:
        policy: "fail" names them all; "drop" leaves them out; "truncate" cuts the end off, and drops a sequence that
            has no trained token left; "split" makes windows, in which each token is trained exactly once.
        ways: the policies that there are for these rows besides "fail".

    Raises:
        DataError: the policy is "fail" and a sequence is too long, or nothing is left to train on.
    """
    too_long = [one for one in rendered if len(one.tokens) > limit.tokens]
    if not too_long:
        return Fitted(list(rendered))
    if policy == "fail":
        raise _too_long(len(rendered), too_long, limit, ways)
    fitted = _POLICIES[policy](rendered, too_long, limit.tokens)
    if not fitted.rendered:
        others = [way for way in ways if way not in (policy, "drop")]
        raise DataError(f"no row has a trained token within {limit}: {what_to_do(limit, others)}.")
    return fitted


def what_to_do(limit: Limit, ways: Sequence[str]) -> str:
    """About rows that are too long: `data.max_length` helps only below what the model can hold."""
    others = " or ".join(part for part in (", ".join(ways[:-1]), *ways[-1:]) if part)
    asked = [f"set data.overlength to {others}"] if others else []
    return ", or ".join((["raise data.max_length"] if limit.can_be_raised else ["give shorter rows"]) + asked)


def _too_long(rows: int, too_long: list[Rendered], limit: Limit, ways: Sequence[str]) -> DataError:
    of = counted(rows, "row")
    longer = counted(len(too_long), f"of {of} is longer", f"of {of} are longer")
    return DataError(
        f"{longer} than {limit}: {what_to_do(limit, ways)}.",
        [f"{one.source}: {len(one.tokens)} tokens" for one in too_long],
    )


def _drop(rendered: Sequence[Rendered], too_long: list[Rendered], max_length: int) -> Fitted:
    return Fitted([one for one in rendered if len(one.tokens) <= max_length], dropped=_sources(too_long))


def _truncate(rendered: Sequence[Rendered], too_long: list[Rendered], max_length: int) -> Fitted:
    cut = [Rendered(one.tokens[:max_length], one.weights[:max_length], one.source) for one in rendered]
    shortened = [one for one in too_long if any(one.weights[:max_length])]
    lost = [one for one in too_long if not any(one.weights[:max_length])]
    return Fitted([one for one in cut if any(one.weights)], truncated=_sources(shortened), dropped=_sources(lost))


def _split(rendered: Sequence[Rendered], too_long: list[Rendered], max_length: int) -> Fitted:
    windows = [window for one in rendered for window in _windows(one, max_length) if any(window.weights)]
    return Fitted(windows, split=_sources(too_long))


_POLICIES: dict[str, Callable[[Sequence[Rendered], list[Rendered], int], Fitted]] = {
    "drop": _drop,
    "truncate": _truncate,
    "split": _split,
}


def _windows(one: Rendered, max_length: int) -> Iterable[Rendered]:
    """Consecutive windows; each begins with the last token of the one before, as context without weight."""
    step = max_length - 1
    for start in range(0, max(len(one.tokens) - 1, 1), step):
        stop = start + max_length
        yield Rendered(one.tokens[start:stop], [0.0, *one.weights[start + 1 : stop]], one.source)


def _sources(rendered: Iterable[Rendered]) -> list[str]:
    """Each source once: a conversation may be several sequences."""
    return list(dict.fromkeys(one.source for one in rendered))


def _some(sources: list[str]) -> str:
    return ", ".join(sources[:3]) + (", …" if len(sources) > 3 else "")
