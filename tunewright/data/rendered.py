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


def fit(rendered: Sequence[Rendered], max_length: int, policy: Overlength) -> Fitted:
    """Make sequences longer than `max_length` tokens fit.

    Args:
        policy: "fail" names them all; "drop" leaves them out; "truncate" cuts the end off, and drops a sequence that
            has no trained token left; "split" makes windows, in which each token is trained exactly once.

    Raises:
        DataError: the policy is "fail" and a sequence is too long, or nothing is left to train on.
    """
    too_long = [one for one in rendered if len(one.tokens) > max_length]
    if not too_long:
        return Fitted(list(rendered))
    fitted = _POLICIES[policy](rendered, too_long, max_length)
    if not fitted.rendered:
        raise DataError(f"no row has a trained token within {max_length} tokens: raise data.max_length.")
    return fitted


def _fail(rendered: Sequence[Rendered], too_long: list[Rendered], max_length: int) -> Fitted:
    rows = counted(len(rendered), "row")
    longer = counted(len(too_long), f"of {rows} is longer", f"of {rows} are longer")
    raise DataError(
        f"{longer} than {max_length} tokens: raise data.max_length, or set data.overlength to truncate, drop or split.",
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
    "fail": _fail,
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
