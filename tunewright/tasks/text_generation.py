"""`text-generation`: anything that transformers loads as a causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.data.batches import Example, pad, split_by_tokens
from tunewright.data.kinds import KINDS, Conversation
from tunewright.data.render import Renderer
from tunewright.data.rendered import fit
from tunewright.data.templates import ensure_chat_template
from tunewright.errors import BaseModelError, DataError, counted, them
from tunewright.tasks._pretrained import (
    context_length,
    load_config,
    load_tokenizer,
    load_weights,
    max_length,
    without_weights,
)
from tunewright.tasks._quiet import quiet
from tunewright.tasks.base import Answer, Batch, Encoded, Likelihood, Model, Predictions, Task, in_batches

if TYPE_CHECKING:
    from torch import Tensor, nn


PARALLEL = 0.9999
"""The cosine above which two rows of a head count as parallel: what rounding to bf16 leaves of equal ones."""


class TextGeneration(Task):
    """Next-token prediction. A row's loss covers the tokens that carry weight: answers, or a whole text."""

    name: ClassVar[str] = "text-generation"
    data_kinds: ClassVar[tuple[str, ...]] = ("chat", "prompt_completion", "text")
    packs: ClassVar[bool] = True

    def load(self, base: str, *, seed: int = 0, dtype: Any = None, weights: bool = True) -> Model:
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

    def prepare(self, model: Model, data: Any, kind: str) -> None:
        """Give the tokenizer its chat template and its new tokens, and the model the rows for them."""
        model.chats = kind == "chat"
        notice = ensure_chat_template(model.processor, data.chat_template) if model.chats else None
        if notice:
            model.notices.append(notice)
        if data.special_tokens:
            add_tokens(model, data.special_tokens)

    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        faults: list[str] = []
        skip = data.on_bad_rows == "skip"
        rendered = Renderer(model.processor, data.loss_on).render_all(records, faults if skip else None)
        if faults and not rendered:
            raise DataError(
                f"none of {counted(len(records), 'row')} can be rendered: mend {them(len(records))}.", faults
            )
        limit = max_length(model, data.max_length)
        kind = KINDS[type(records[0])] if records else "text"
        fitted = fit(rendered, limit, data.overlength_for(kind))
        return Encoded([shifted(r.tokens, r.weights, r.source) for r in fitted.rendered], limit, fitted, faults)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

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
        )

    def nll(self, module: nn.Module, batch: Batch, *, smoothing: float = 0.0, router: bool = False) -> Likelihood:
        """Logits exist only at positions with weight: see `only_at`. Label smoothing mixes in the uniform distribution.

        Padding is on the right, where causal attention cannot see it, so no mask is passed and the attention kernels
        for plain causal masks stay usable.
        """
        import torch.nn.functional as F  # noqa: N812

        picked_BT = batch.weight != 0
        extra = {"output_router_logits": True} if router else {}
        with only_at(module, picked_BT):
            output = module(**batch.inputs, use_cache=False, **extra)
        logits_NV = output.logits[0].float()
        target_N = batch.target[picked_BT]
        nll_N = F.cross_entropy(logits_NV, target_N, reduction="none", label_smoothing=smoothing)
        correct_N = logits_NV.detach().argmax(-1) == target_N
        return Likelihood(
            nll_N.new_zeros(picked_BT.shape).masked_scatter(picked_BT, nll_N),
            correct_N.new_zeros(picked_BT.shape).masked_scatter(picked_BT, correct_N),
            router_balance(module, output.router_logits, batch) if router else None,
        )

    def predict(self, model: Model, examples: Sequence[Example]) -> Predictions:
        import torch

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

    def pieces(self, model: Model, example: Example) -> list[tuple[str, float]]:
        """Neighbouring tokens of the same weight are joined, so that a character of several tokens stays whole."""
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


def shifted(tokens: Sequence[int], weights: Sequence[float], source: str) -> Example:
    """Position t predicts token t + 1, so the last token is never fed and the first never predicted."""
    ids = np.asarray(tokens, dtype=np.int64)
    weight = np.asarray(weights, dtype=np.float32)
    return Example({"input_ids": ids[:-1]}, ids[1:], weight[1:], source, len(ids) - 1)


def never_learned(head_VH: Tensor, token: int) -> bool:
    """Whether a row is 0, or parallel to that of another token, as no two rows are that were ever trained on."""
    import torch.nn.functional as F  # noqa: N812

    row_H = head_VH[token].float()
    alike = sum(
        int((F.cosine_similarity(part.float(), row_H, dim=-1) > PARALLEL).sum()) for part in head_VH.split(8192)
    )
    return alike != 1  # itself; a row of zeros is not even like itself


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


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


TASK = TextGeneration
