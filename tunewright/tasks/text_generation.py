"""`text-generation`: anything that transformers loads as a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.data.batches import Example, pad, split_by_tokens
from tunewright.data.groups import ends_of, sharing
from tunewright.data.kinds import KINDS, Conversation
from tunewright.data.render import Renderer
from tunewright.data.rendered import fit
from tunewright.data.templates import ensure_chat_template
from tunewright.errors import BaseModelError, DataError, counted, them
from tunewright.tasks._answers import (
    branch_mask,
    collate_elements,
    collate_joined,
    encode_answers,
    encode_prompts,
    fixed_numbers,
    fixed_positions,
    may_share,
    preferences,
    shifted,
)
from tunewright.tasks._logits import entropy_of, in_full, only_at, router_balance
from tunewright.tasks._pretrained import (
    context_length,
    load_config,
    load_tokenizer,
    load_weights,
    longest_row,
    without_weights,
)
from tunewright.tasks._values import values
from tunewright.tasks._vocabulary import add_tokens, never_learned
from tunewright.tasks.base import Answer, Batch, Drawn, Encoded, Likelihood, Model, Predictions, Task, in_batches

if TYPE_CHECKING:
    from torch import Tensor, nn


SHARED = 1e-4
"""How far the likelihood of an answer may be off, relative to its size, where it shares its prompt with another."""
SHARED_IN_HALF = 0.03
"""The same where the weights, or what is computed of them, are in half precision."""


class TextGeneration(Task):
    """Next-token prediction. A row's loss covers the tokens that carry weight: answers, or a whole text."""

    name: ClassVar[str] = "text-generation"
    data_kinds: ClassVar[tuple[str, ...]] = ("chat", "prompt_completion", "text", "preference", "rated", "prompt")
    packs: ClassVar[bool] = True
    critic: Any = None  # a value net beside the model, while it learns from a reward

    def load(self, base: str, *, seed: int = 0, dtype: str | None = None, weights: bool = True) -> Model:
        from transformers import AutoModelForCausalLM

        config = load_config(base)
        if not weights:
            return Model(without_weights(AutoModelForCausalLM, config), None, self, base)
        if any("ForMaskedLM" in name or "ForPreTraining" in name for name in config.architectures or []):
            raise BaseModelError(
                f"{base} is an encoder ({config.architectures[0]}): it sees the tokens that it would have to predict. "
                "For a classifier set task: text-classification."
            )
        module, info = load_weights(AutoModelForCausalLM, base, config, dtype=dtype or "float32")
        if info["missing_keys"]:
            raise BaseModelError(
                f"{base} lacks the weights {_some(info['missing_keys'])} that a language model needs: it is "
                f"{' or '.join(config.architectures or ['something else'])}. "
                "For a classifier set task: text-classification."
            )
        tokenizer = load_tokenizer(base)
        return Model(module, tokenizer, self, base, chats=bool(tokenizer.chat_template))

    def prepare(self, model: Model, data: Any, chats: bool) -> None:
        """Give the tokenizer its chat template and its new tokens, and the model the rows for them."""
        model.chats = chats
        notice = ensure_chat_template(model.processor, data.chat_template) if model.chats else None
        if notice:
            model.notices.append(notice)
        if data.special_tokens:
            add_tokens(model, data.special_tokens)

    def template_notices(self, model: Model, data: Any) -> list[str]:
        """What the chat template of conversations writes, and its tokenizer cannot."""
        chosen = data.chat_template not in (None, "plain")
        return Renderer(model.processor).template_notices(chosen) if model.chats else []

    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        faults: list[str] = []
        skip = data.on_bad_rows == "skip"
        limit = longest_row(model, data.max_length)
        kind = KINDS[type(records[0])] if records else "text"
        renderer = Renderer(model.processor, data.loss_on)
        if kind == "prompt":
            return encode_prompts(renderer, records, data, limit.less(model.reserve))
        if kind in ("preference", "rated"):
            return encode_answers(renderer, records, data, limit)
        rendered = renderer.render_all(records, faults if skip else None)
        if faults and not rendered:
            raise DataError(
                f"none of {counted(len(records), 'row')} can be rendered: mend {them(len(records))}.", faults
            )
        fitted = fit([one.without_tail() for one in rendered], limit, data.overlength_for(kind))
        return Encoded([shifted(r.tokens, r.weights, r.source) for r in fitted.rendered], limit.tokens, fitted, faults)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        if any(e.shared for e in examples):
            return collate_joined(examples)
        if examples[0].parts:
            return collate_elements(self.collate([part for e in examples for part in e.parts]), examples)
        lengths = torch.tensor([e.length for e in examples])
        inputs = {name: torch.from_numpy(pad([e.inputs[name] for e in examples], 0)) for name in examples[0].inputs}
        positions_BT = torch.arange(int(lengths.max())).expand(len(examples), -1)
        if "position_ids" in inputs:  # packed: one row that holds several
            sequence = (inputs["position_ids"] == 0).cumsum(-1) - 1
        else:
            sequence = torch.arange(len(examples))[:, None].expand_as(positions_BT)
        return Batch(
            inputs,
            target=torch.from_numpy(pad([e.target for e in examples], 0)),
            weight=torch.from_numpy(pad([e.weight for e in examples], 0.0)),
            mask=positions_BT < lengths[:, None],
            sequence=sequence,
            sources=tuple(e.source for e in examples),
            fixed={**fixed_numbers(examples), **fixed_positions(examples)},
        )

    def nll(
        self,
        module: nn.Module,
        batch: Batch,
        *,
        smoothing: float = 0.0,
        router: bool = False,
        temperature: float | Tensor = 1.0,
        entropy: bool = False,
    ) -> Likelihood:
        """Logits exist only at positions with weight: see `only_at`. Label smoothing mixes in the uniform distribution.

        Padding is on the right, where causal attention cannot see it, so no mask is passed and the attention kernels
        for plain causal masks stay usable; only answers that share their prompt need one.

        Args:
            temperature: what the logits are divided by: a number, or one for each position [B, T].
            entropy: whether that of each position's distribution is wanted too.
        """
        import torch.nn.functional as F  # noqa: N812

        picked_BT = batch.weight != 0
        extra: dict[str, Any] = {"output_router_logits": True} if router else {}
        if batch.branch is not None:
            extra["attention_mask"] = branch_mask(module, batch.branch)
        with only_at(module, picked_BT):
            output = module(**batch.inputs, use_cache=False, **extra)
        logits_NV = in_full(output.logits[0])
        if not isinstance(temperature, float | int):
            logits_NV = logits_NV / temperature[picked_BT][:, None]
        elif temperature != 1:
            logits_NV = logits_NV / temperature
        target_N = batch.target[picked_BT]
        nll_N = F.cross_entropy(logits_NV, target_N, reduction="none", label_smoothing=smoothing)
        correct_N = logits_NV.detach().argmax(-1) == target_N
        entropy_N = entropy_of(logits_NV.detach()) if entropy else None
        return Likelihood(
            nll_N.new_zeros(picked_BT.shape).masked_scatter(picked_BT, nll_N),
            correct_N.new_zeros(picked_BT.shape).masked_scatter(picked_BT, correct_N),
            router_balance(module, output.router_logits, batch) if router else None,
            nll_N.new_zeros(picked_BT.shape).masked_scatter(picked_BT, entropy_N) if entropy_N is not None else None,
        )

    def shares(self, model: Model, two: Sequence[Example], longest: int) -> bool:
        """Whether answers may share their prompt: asked of the model itself, by the likelihoods of two elements.

        Args:
            longest: positions of the longest row that there will be.
        """
        import torch

        if not may_share(model.module, longest):
            return False
        weight = next(model.module.parameters())
        with torch.no_grad(), suppress(RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            apart, together = (
                batch.per_sequence(self.nll(model.module, batch).nll_BT)
                for batch in (self.collate(rows).to(weight.device) for rows in (two, [sharing(e) for e in two]))
            )
            half = weight.dtype.itemsize < 4 or torch.is_autocast_enabled(weight.device.type)
            rounding = SHARED_IN_HALF if half else SHARED
            return bool(((apart - together).abs() <= rounding * apart.abs().clamp_min(1)).all())
        return False  # the model takes no mask of this form

    def predict(self, model: Model, examples: Sequence[Example]) -> Predictions:
        import torch

        if examples and examples[0].parts:
            return self._preferences(model, examples)
        device = next(model.module.parameters()).device
        nll_N, count_N, correct_N = np.zeros(len(examples)), np.zeros(len(examples)), np.zeros(len(examples))
        model.module.eval()
        with torch.inference_mode():
            for rows in in_batches(examples):
                batch = self.collate([examples[i] for i in rows]).to(device)
                scored = self.nll(model.module, batch)
                assert scored.correct_BT is not None
                nll_N[rows] = scored.nll_BT.double().sum(-1).cpu().numpy()
                count_N[rows] = (batch.weight != 0).sum(-1).cpu().numpy()
                correct_N[rows] = scored.correct_BT.sum(-1).cpu().numpy()
        return Predictions(
            "likelihood", [e.source for e in examples], nll_N=nll_N, count_N=count_N, correct_N=correct_N
        )

    def _preferences(self, model: Model, examples: Sequence[Example]) -> Predictions:
        import torch

        device = next(model.module.parameters()).device
        score_E: list[Any] = [None] * len(examples)
        model.module.eval()
        with torch.inference_mode():
            for rows in in_batches(examples):
                batch = self.collate([examples[i] for i in rows]).to(device)
                score_S = -batch.per_sequence(self.nll(model.module, batch).nll_BT).double().cpu().numpy()
                for row, scores in zip(rows, np.split(score_S, ends_of([examples[i] for i in rows])), strict=True):
                    score_E[row] = scores
        return preferences(examples, score_E)

    def pieces(self, model: Model, example: Example) -> list[tuple[str, float]]:
        """Neighbouring tokens of the same weight are joined, so that a character of several tokens stays whole.

        Of answers to a prompt the best is what is learned; of a prompt alone nothing is.
        """
        if example.parts:
            first, *others = [self.pieces(model, part) for part in example.parts]
            return [*first, *((f"\n{text}", 0.0) for other in others for text, _ in other[-1:])]
        if not len(example.target):
            return [(model.processor.decode(example.inputs["input_ids"]), 0.0)]
        tokens = [int(example.inputs["input_ids"][0]), *example.target.tolist()]
        weights = [0.0, *example.weight.tolist()]
        starts = [0, *(i for i in range(1, len(tokens)) if weights[i] != weights[i - 1]), len(tokens)]
        return [(model.processor.decode(tokens[a:b]), weights[a]) for a, b in pairwise(starts)]

    def routes(self, module: nn.Module) -> bool:
        return hasattr(module.config.get_text_config(), "num_experts_per_tok")  # type: ignore[union-attr, operator]

    def head(self, module: nn.Module) -> list[str]:
        output = module.get_output_embeddings()  # type: ignore[operator]
        return [name for name, child in module.named_modules() if child is output]

    def room(self, model: Model, prompt: Any) -> int:
        """How many tokens an answer to the prompt may have before the model's context is full."""
        return context_length(model) - len(prompt_tokens(Renderer(model.processor), prompt))

    def generate(
        self,
        model: Model,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        batch_tokens: int = 8192,
        seed: int = 0,
        streamer: Any = None,
    ) -> list[Answer]:
        """Answer prompts (a text, a list of messages, or a conversation with its tools), in their order.

        Prompts are fed as they were in training, sorted by length and padded on the left; an answer ends at the
        token that the model was taught to end with. `temperature` 0 is greedy.
        """
        import torch

        renderer = Renderer(model.processor)
        tokens = [prompt_tokens(renderer, prompt) for prompt in prompts]
        stop = renderer.stop_ids()
        limit = context_length(model)
        device = next(model.module.parameters()).device
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        answers: dict[int, Answer] = {}
        model.module.eval()
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        lengths = [len(t) + max_new_tokens for t in tokens]
        for rows in split_by_tokens(order, lengths, batch_tokens):
            longest = max(len(tokens[i]) for i in rows)
            room = min(max_new_tokens, limit - longest)
            if room < 1:
                raise BaseModelError(
                    f"A prompt of {longest} tokens leaves no room to answer: the model's context is {limit} tokens. "
                    "Shorten the prompt."
                )
            torch.manual_seed(seed)
            mask = torch.tensor([[0] * (longest - len(tokens[i])) + [1] * len(tokens[i]) for i in rows], device=device)
            ids = torch.tensor([[0] * (longest - len(tokens[i])) + tokens[i] for i in rows], device=device)
            with torch.inference_mode():
                output = model.module.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=room,
                    eos_token_id=stop,
                    pad_token_id=model.processor.pad_token_id,
                    streamer=streamer,
                    **sampling,
                )
            for row, answer in zip(rows, output[:, longest:].tolist(), strict=True):
                end = next((n for n, token in enumerate(answer) if token in stop), None)
                answers[row] = Answer(model.processor.decode(answer[:end], skip_special_tokens=True), end is not None)
        return [answers[row] for row in range(len(prompts))]

    def sample(
        self,
        model: Model,
        prompts: Sequence[Example],
        uniform: np.ndarray,
        copies: int,
        max_new_tokens: int,
        temperature: float,
    ) -> list[list[Drawn]]:
        """For each prompt so many answers: see `_sampling.sample`, which is faster than `generate`, and says how likely
        each token was.

        Args:
            uniform: a number in [0, 1) for each token of each answer, [prompts · copies, max_new_tokens].
        """
        from tunewright.tasks._sampling import sample

        stop = Renderer(model.processor).stop_ids()
        drawn = sample(
            model.module,
            [prompt.inputs["input_ids"].tolist() for prompt in prompts],
            copies=copies,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            uniform=uniform,
            stop=stop,
            pad=model.processor.pad_token_id,
            limit=context_length(model),
        )
        return [[self._in_words(model, answer) for answer in answers] for answers in drawn]

    def _in_words(self, model: Model, answer: Any) -> Drawn:
        said = answer.tokens[: len(answer.tokens) - answer.ended]
        return Drawn(answer.tokens, answer.nll, answer.ended, model.processor.decode(said, skip_special_tokens=True))

    def values(self, batch: Batch) -> Tensor:
        """What the value net expects before each next token, [B, T]."""
        return values(self.critic, batch)

    def unlearned_ends(self, model: Model) -> list[int]:
        """The tokens that end an answer and that the base never saw, so that no adapter can teach it to say them.

        The rows of such tokens in the head only ever learned to be unlikely: all point the same way, or are still 0.
        """
        head = model.module.get_output_embeddings().weight.detach()
        return [end for end in Renderer(model.processor).stop_ids() if never_learned(head, end)]


def prompt_tokens(renderer: Renderer, prompt: Any) -> list[int]:
    """What is fed for a text, a list of messages, or a conversation with its tools."""
    if isinstance(prompt, Conversation):
        return renderer.prompt(prompt.messages, prompt.tools)
    return renderer.prompt(prompt)


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


TASK = TextGeneration
