"""Rendering, for whatever is written in the rows."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import FAMILIES, tiny_tokenizer
from tunewright.data.records import Completion, Conversation, Document
from tunewright.data.render import Rendered, Renderer

BYTE_LEVEL = ["chatml", "qwen3", "llama3"]

quick = settings(deadline=None, max_examples=60)

characters = st.characters(codec="utf-8", exclude_characters="<>\x00")
texts = st.text(characters, max_size=30)
contents = st.text(st.sampled_from("ab 12\n\t.,?é▁你🙂"), min_size=1, max_size=15).filter(str.strip)
conversations = st.lists(contents, min_size=2, max_size=6).map(
    lambda said: Conversation(
        [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(said)][
            : len(said) // 2 * 2
        ],
        None,
        "rows[0]",
    )
)


@cache
def renderer(family: str) -> Renderer:
    return Renderer(tiny_tokenizer(family))


def decode(family: str, tokens: list[int]) -> str:
    return renderer(family).tokenizer.decode(tokens)


def spans(rendered: Rendered) -> list[list[int]]:
    """The tokens of each run of weights."""
    runs: list[list[int]] = []
    for index, (token, weight) in enumerate(zip(rendered.tokens, rendered.weights, strict=True)):
        if weight and not rendered.weights[index - 1]:
            runs.append([])
        if weight:
            runs[-1].append(token)
    return runs


@pytest.mark.parametrize("family", FAMILIES)
@quick
@given(conversation=conversations)
def test_every_prompt_is_served_as_it_was_trained(family, conversation):
    render = renderer(family)
    rendered = render(conversation)
    for index in range(1, len(conversation.messages), 2):
        served = render.prompt(conversation.messages[:index])
        assert any(one.tokens[: len(served)] == served and one.weights[len(served)] for one in rendered)


@pytest.mark.parametrize("family", BYTE_LEVEL)
@quick
@given(conversation=conversations)
def test_the_tokens_say_what_the_template_says(family, conversation):
    render = renderer(family)
    last = render(conversation)[-1]
    assert decode(family, last.tokens) == render.tokenizer.apply_chat_template(conversation.messages, tokenize=False)


@pytest.mark.parametrize("family", BYTE_LEVEL)
@quick
@given(conversation=conversations)
def test_the_trained_text_is_the_answers(family, conversation):
    learned = [decode(family, span) for one in renderer(family)(conversation) for span in spans(one)]
    said = [message["content"] for message in conversation.messages[1::2]]
    said = [answer.strip() for answer in said] if family == "llama3" else said
    start = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    end = "<|eot_id|>" if family == "llama3" else "<|im_end|>"
    assert learned == [start + answer + end for answer in said]


@pytest.mark.parametrize("family", FAMILIES)
@quick
@given(prompt=texts, completion=texts.filter(bool))
def test_a_completion_continues_its_prompt(family, prompt, completion):
    render = renderer(family)
    (rendered,) = render(Completion(prompt, completion, "rows[0]"))
    served = render.prompt(prompt)
    assert rendered.tokens[: len(served)] == served
    assert not any(rendered.weights[: len(served)])
    assert all(rendered.weights[max(len(served), 1) :])
    assert rendered.tokens[-1] == render.tokenizer.eos_token_id


@pytest.mark.parametrize("family", BYTE_LEVEL)
@quick
@given(text=texts.filter(bool))
def test_a_document_is_itself_and_an_end(family, text):
    (rendered,) = renderer(family)(Document(text, "rows[0]"))
    start = FAMILIES[family].bos or ""
    assert decode(family, rendered.tokens) == start + text + FAMILIES[family].eos
