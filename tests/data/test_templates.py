"""The chat template that a model is trained, saved and served with."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.contracts.steps import prepared
from tests.fixtures import FAMILIES, TEMPLATES, tiny_tokenizer
from tests.tiny import chats, completions
from tunewright.data.records import Conversation
from tunewright.data.render import Renderer, ensure_chat_template
from tunewright.errors import DataError

TALK = Conversation(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "No."},
    ],
    None,
    "a",
)


def test_a_template_of_its_own_is_kept():
    tokenizer = tiny_tokenizer("chatml")
    before = tokenizer.chat_template
    assert ensure_chat_template(tokenizer, None) is None
    assert tokenizer.chat_template == before


@pytest.mark.parametrize("family", ["chatml", "llama3", "mistral"])
def test_the_plain_template_needs_no_new_token(family):
    tokenizer = tiny_tokenizer(family, template=False)
    size = len(tokenizer)
    assert "no chat template" in str(ensure_chat_template(tokenizer, None))
    (rendered,) = Renderer(tokenizer)(TALK)
    learned = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert len(tokenizer) == size
    assert tokenizer.decode(learned, skip_special_tokens=True).strip() == "Hello.No."
    assert learned.count(tokenizer.eos_token_id) == 2
    assert rendered.tokens.count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)


def test_the_plain_template_begins_with_bos_only_where_the_tokenizer_does():
    tokenizer = tiny_tokenizer("chatml", template=False)
    tokenizer.bos_token = "<|im_start|>"  # as GPT-2, which has one and never writes it
    ensure_chat_template(tokenizer, None)
    assert tokenizer.bos_token_id not in Renderer(tokenizer).prompt(TALK.messages[:2])


def test_the_plain_template_is_saved_and_served_alike(tmp_path):
    tokenizer = tiny_tokenizer("llama3", template=False)
    ensure_chat_template(tokenizer, "plain")
    tokenizer.save_pretrained(tmp_path)
    served = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = TALK.messages[:2]
    prompt = served.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt == Renderer(tokenizer).prompt(messages)
    assert served.decode(prompt) == "<|begin_of_text|>system:\nBe brief.\n\nuser:\nHi?\n\nassistant:\n"


def test_the_plain_template_refuses_what_it_would_have_to_drop():
    tokenizer = tiny_tokenizer("llama3", template=False)
    ensure_chat_template(tokenizer, "plain")
    with pytest.raises(DataError, match="cannot present tools"):
        Renderer(tokenizer).prompt(TALK.messages, tools=[{"x": 1}])
    with pytest.raises(DataError, match="cannot present tool calls"):
        Renderer(tokenizer).prompt([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}])


def test_a_template_can_be_given_as_a_file():
    tokenizer = tiny_tokenizer("llama3")
    assert "chatml.jinja is used" in str(ensure_chat_template(tokenizer, str(TEMPLATES / "chatml.jinja")))
    assert tokenizer.chat_template == (TEMPLATES / "chatml.jinja").read_text()


def test_a_template_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"data.chat_template: .*none.jinja cannot be read"):
        ensure_chat_template(tiny_tokenizer("chatml"), str(tmp_path / "none.jinja"))


def test_a_template_with_a_mistake_is_an_error_at_once(tmp_path):
    path = tmp_path / "broken.jinja"
    path.write_text("{% for message in messages %}")
    with pytest.raises(DataError, match="the chat template refuses"):
        ensure_chat_template(tiny_tokenizer("chatml"), str(path))


def noticed(tokenizer, chosen=True):
    return " ".join(Renderer(tokenizer).template_notices(chosen))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_of_the_tokenizers_own_tokens_is_no_matter(family):
    assert not noticed(tiny_tokenizer(family))
    plain = tiny_tokenizer(family, template=False)
    ensure_chat_template(plain, "plain")
    assert not noticed(plain)


@pytest.mark.parametrize("chosen", [True, False])
def test_an_end_of_turn_that_is_spelled_out_is_named_with_what_mends_it(chosen):
    """Else inner answers learn to end with text, and the last one with EOS."""
    tokenizer = tiny_tokenizer("llama3")
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text()
    said = noticed(tokenizer, chosen)
    assert r"ends an answer with '<|im_end|>\n'" in said and "only the last ends with <|end_of_text|>" in said
    assert 'add data.special_tokens: ["<|im_start|>", "<|im_end|>"]' in said
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert not noticed(tokenizer, chosen)


def test_an_answer_that_nothing_ends_is_told_how():
    tokenizer = tiny_tokenizer("llama3")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    assert "have the template write <|end_of_text|> behind each" in noticed(tokenizer)


def test_markers_that_are_spelled_out_are_named_for_a_chosen_template():
    """One of the tokenizer's own is as its model learned it, as with Zephyr's <|user|>."""
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.chat_template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    assert "writes <|user|>, <|assistant|>, which the tokenizer spells in several tokens: add" in noticed(tokenizer)
    assert not noticed(tokenizer, chosen=False)


def test_a_run_says_it_and_only_of_conversations(tiny_base):
    base, template = tiny_base("llama"), {"chat_template": str(TEMPLATES / "chatml.jinja")}
    found = prepared(base, chats(4), data=template)
    assert any("add data.special_tokens" in notice for notice in found.notices)
    mended = {**template, "special_tokens": ["<|im_start|>", "<|im_end|>"]}
    assert not any("add data.special_tokens" in notice for notice in prepared(base, chats(4), data=mended).notices)
    assert not any("chat template" in notice for notice in prepared(base, completions(4)).notices)
