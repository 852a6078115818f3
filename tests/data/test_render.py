"""What is trained is what is served: the rules of rendering, one test each."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizer

from tests.fixtures import FAMILIES, TEMPLATES, tiny_tokenizer
from tunewright.data.records import Completion, Conversation, Document, Labelled
from tunewright.data.render import Rendered, Renderer
from tunewright.errors import DataError

END = {
    "chatml": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
}
BOS_FAMILIES = [family for family, names in FAMILIES.items() if names.bos]
ONE_SEQUENCE = [family for family in FAMILIES if family != "qwen3"]


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def chat(*messages: dict, tools: list | None = None) -> Conversation:
    return Conversation(list(messages), tools, "train.jsonl:1")


def renderer(family: str, **options) -> Renderer:
    return Renderer(tiny_tokenizer(family, **options))


def text(render: Renderer, rendered: Rendered) -> str:
    return render.tokenizer.decode(rendered.tokens)


def trained(render: Renderer, rendered: Rendered) -> str:
    """The text of the tokens with weight; sentencepiece loses a space in front of it."""
    return render.tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]).strip()


QUESTION, REPLY = user("What is the capital of France?"), assistant("Paris.")
MORE, MORE_REPLY = user("How many apples?"), assistant("8 are left.")
TWO_TURNS = chat(QUESTION, REPLY, MORE, MORE_REPLY)


# What is learned


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_and_its_end_are_learned_without_generation_blocks(family):
    assert "generation %" not in (TEMPLATES / f"{family}.jinja").read_text()
    render = renderer(family)
    (rendered,) = render(chat(QUESTION, REPLY))
    thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    assert trained(render, rendered) == thought + "Paris." + END[family]


@pytest.mark.parametrize("family", ["chatml", "qwen3", "gemma"])
def test_what_follows_the_end_of_a_turn_is_not_learned(family):
    render = renderer(family)
    (rendered,) = render(chat(QUESTION, REPLY))
    assert text(render, rendered).endswith("\n")
    assert rendered.weights[-1] == 0


@pytest.mark.parametrize("family", ONE_SEQUENCE)
def test_a_stable_conversation_is_one_sequence_with_all_answers(family):
    render = renderer(family)
    (rendered,) = render(TWO_TURNS)
    assert rendered.source == "train.jsonl:1"
    assert "".join(trained(render, rendered).split()) == f"Paris.{END[family]}8areleft.{END[family]}"


def test_history_that_changes_gives_one_sequence_per_answer_each_as_served():
    render = renderer("qwen3")
    first, second = assistant("Paris.", reasoning_content="easy"), assistant("8.", reasoning_content="12 - 4")
    one, two = render(chat(QUESTION, first, MORE, second))
    assert trained(render, one) == "<think>\neasy\n</think>\n\nParis.<|im_end|>"
    assert trained(render, two) == "<think>\n12 - 4\n</think>\n\n8.<|im_end|>"
    assert "easy" not in text(render, two)
    assert two.tokens[: len(render.prompt([QUESTION, first, MORE]))] == render.prompt([QUESTION, first, MORE])


def test_steps_with_tools_share_a_sequence_where_the_template_keeps_their_reasoning():
    render = renderer("qwen3")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    step = assistant(None, reasoning_content="look", tool_calls=[call])
    result = {"role": "tool", "content": "4"}
    (rendered,) = render(chat(QUESTION, step, result, assistant("4.", reasoning_content="done")))
    assert trained(render, rendered).count("<|im_end|>") == 2
    assert "<tool_response>" not in trained(render, rendered)


@pytest.mark.parametrize("family", FAMILIES)
def test_eos_is_learned_though_it_is_the_padding_token(family):
    render = renderer(family, pad_is_eos=True)
    eos = render.tokenizer.eos_token_id
    assert render.tokenizer.pad_token_id == eos
    for record in (Document("Once upon a time.", "a"), Completion("Thank", " you.", "b")):
        (rendered,) = render(record)
        assert rendered.tokens.count(eos) == 1
        assert (rendered.tokens[-1], rendered.weights[-1]) == (eos, 1)


def test_the_weight_of_a_message_scales_its_answer():
    render = renderer("chatml")
    (rendered,) = render(chat(QUESTION, assistant("Paris.", weight=0), MORE, assistant("8.", weight=0.5)))
    assert trained(render, rendered) == "8.<|im_end|>"
    assert set(rendered.weights) == {0, 0.5}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_last_answer_is_learned_on_request(family):
    render = Renderer(tiny_tokenizer(family), loss_on="last")
    (rendered,) = render(TWO_TURNS)
    assert "8 are left." in trained(render, rendered) and "Paris" not in trained(render, rendered)


def test_only_the_completion_is_learned():
    render = renderer("chatml")
    (rendered,) = render(Completion("Tell me a story.", " Once upon a time", "a"))
    assert trained(render, rendered) == "Once upon a time<|endoftext|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_a_document_is_learned_but_its_first_token(family):
    (rendered,) = renderer(family)(Document("Once upon a time.", "a"))
    assert rendered.weights == [0.0] + [1.0] * (len(rendered.tokens) - 1)


# What is served


@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_prompt_is_what_precedes_the_answer_in_training(family):
    render = renderer(family)
    served = render.prompt(TWO_TURNS.messages[:3])
    rendered = render(TWO_TURNS)[-1]
    assert rendered.tokens[: len(served)] == served
    assert rendered.weights[len(served)] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("prompt", "completion"), [("Once upon a ti", "me there"), ("Tell  ", " me"), ("a", "")])
def test_no_token_straddles_the_end_of_a_prompt(family, prompt, completion):
    render = renderer(family)
    (rendered,) = render(Completion(prompt, completion + "!", "a"))
    served = render.prompt(prompt)
    assert rendered.tokens[: len(served)] == served
    assert not any(rendered.weights[: len(served)]) and all(rendered.weights[len(served) :])
    assert render.tokenizer.decode(rendered.tokens, skip_special_tokens=True) == prompt + completion + "!"


@pytest.mark.parametrize("family", BOS_FAMILIES)
def test_bos_comes_once(family):
    render = renderer(family)
    bos = render.tokenizer.bos_token
    texts = [Document(f"{bos}Hello", "a"), Document("Hello", "a"), Completion("", f"{bos}Hello", "a")]
    for record in (*texts, Completion("Hello", " you", "a"), TWO_TURNS):
        (rendered,) = render(record)
        assert rendered.tokens[0] == render.tokenizer.bos_token_id
        assert rendered.tokens.count(render.tokenizer.bos_token_id) == 1
    assert render.prompt([QUESTION]).count(render.tokenizer.bos_token_id) == 1


def test_eos_that_the_text_holds_already_is_not_doubled():
    render = renderer("mistral")
    (rendered,) = render(Completion("Hello", " you</s>", "a"))
    assert rendered.tokens.count(render.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_stops_at_eos_and_at_the_end_of_its_turn(family):
    render = renderer(family)
    stops = render.tokenizer.convert_ids_to_tokens(render.stop_ids())
    assert set(stops) == {FAMILIES[family].eos, END[family]}


def test_without_a_chat_template_an_answer_stops_at_eos():
    render = renderer("mistral", template=False)
    assert render.stop_ids() == [render.tokenizer.eos_token_id]


def test_tools_reach_the_template():
    render = renderer("qwen3")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    (rendered,) = render(chat(QUESTION, REPLY, tools=tools))
    assert '"name": "weather"' in text(render, rendered)
    assert rendered.tokens[: len(render.prompt([QUESTION], tools))] == render.prompt([QUESTION], tools)


def test_a_developer_is_the_system_where_the_template_does_not_know_the_role():
    render = renderer("qwen3")
    (rendered,) = render(chat({"role": "developer", "content": "Be brief."}, QUESTION, REPLY))
    assert text(render, rendered).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_text_parts_are_one_text():
    render = renderer("chatml")
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " it?"}]
    assert render.prompt([{"role": "user", "content": parts}]) == render.prompt([user("What is it?")])


def test_tool_arguments_given_as_json_text_are_written_as_an_object():
    render = renderer("llama3")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    (rendered,) = render(chat(QUESTION, assistant(None, tool_calls=[call])))
    assert trained(render, rendered) == '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'


# Templates that do not fit


def test_an_answer_without_an_end_token_gets_eos():
    render = renderer("chatml")
    render.tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    (rendered,) = render(TWO_TURNS)
    assert trained(render, rendered).endswith("8 are left.\n<|endoftext|>")
    assert rendered.tokens.count(render.tokenizer.eos_token_id) == 1


REASONING = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}"
    "{% else %}{{ '<|im_end|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\n' }}{% endif %}"
)


def test_a_reasoning_prompt_is_continued_by_the_reasoning_of_the_answer():
    """DeepSeek-R1: the prompt ends with <think>, and the template drops the reasoning even of the last answer."""
    render = renderer("chatml")
    render.tokenizer.chat_template = REASONING
    (rendered,) = render(chat(QUESTION, assistant("<think>\neasy</think>Paris.")))
    assert trained(render, rendered) == "easy</think>Paris.<|endoftext|>"
    assert rendered.tokens[: len(render.prompt([QUESTION]))] == render.prompt([QUESTION])


def test_an_answer_that_would_follow_another_prompt_than_the_served_one_is_refused():
    render = renderer("chatml")
    render.tokenizer.chat_template = REASONING
    with pytest.raises(DataError, match=r"train.jsonl:1: .*ends a prompt with '<think>\\n'.*begin the answer with it"):
        render(chat(QUESTION, REPLY))


def test_white_space_that_only_the_prompt_has_is_trained_as_served():
    render = renderer("chatml")
    render.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    (rendered,) = render(chat(QUESTION, REPLY))
    assert text(render, rendered).endswith("assistant:\nParis.<|endoftext|>")


@pytest.mark.parametrize(
    ("family", "messages", "reason"),
    [
        ("gemma", [{"role": "system", "content": "Be brief."}, QUESTION, REPLY], "System role not supported"),
        ("mistral", [QUESTION, MORE, REPLY], "must alternate"),
        ("chatml", [REPLY, QUESTION, REPLY], "answer to nothing"),
        ("chatml", [QUESTION, assistant("Paris.", weight=0)], "every weight is 0"),
        ("gemma", [QUESTION, assistant(None, tool_calls=[{"function": {"name": "f"}}])], "renders nothing of messages"),
    ],
)
def test_what_cannot_be_trained_is_named(family, messages, reason):
    with pytest.raises(DataError, match=f"train.jsonl:1: .*{reason}"):
        renderer(family)(chat(*messages))


def test_a_labelled_text_is_not_rendered():
    with pytest.raises(DataError, match="no answer to generate"):
        renderer("chatml")(Labelled("good", "positive", "a"))


def test_a_conversation_without_a_chat_template_is_refused():
    with pytest.raises(DataError, match=r"no chat template, so it reads no messages: give it one text"):
        renderer("chatml", template=False)(TWO_TURNS)


def test_a_tokenizer_without_eos_is_refused():
    render = renderer("chatml")
    render.tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        render(Document("text", "a"))


# Many records


def test_all_faults_are_in_one_report():
    bad = chat({"role": "system", "content": "x"}, QUESTION, REPLY)
    with pytest.raises(DataError, match=r"2 of 3 rows cannot be rendered") as caught:
        renderer("gemma").render_all([bad, TWO_TURNS, bad])
    assert len(caught.value.faults) == 2


def test_faults_can_be_collected_instead():
    bad, faults = chat({"role": "system", "content": "x"}, QUESTION, REPLY), []
    rendered = renderer("gemma").render_all([bad, TWO_TURNS], faults)
    assert len(rendered) == 1
    assert faults == ["train.jsonl:1: the chat template refuses this conversation: System role not supported"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_rendered_as_each_of_its_records(family):
    render = renderer(family)
    records = [TWO_TURNS, Document("Once upon", "b"), Completion("Once upon a ti", "me", "c")] * 2
    assert render.render_all(records) == [rendered for record in records for rendered in render(record)]
    assert render.render_all([]) == []


class LetterTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python, which has no offsets: one token a letter."""

    def __init__(self, **options):
        super().__init__(bos_token=None, eos_token="$", unk_token="?", pad_token="$", **options)

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(128)}

    def _tokenize(self, text: str, **_) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_an_unknown_character_at_the_end_is_no_end_token():
    render = Renderer(LetterTokenizer(chat_template="{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"))
    assert render.tokenizer.unk_token == "?"
    (rendered,) = render(chat(user("hi"), assistant("ho?")))
    assert [chr(token) for token in rendered.tokens][-3:] == ["?", " ", "$"]


def test_a_slow_tokenizer_renders_alike():
    render = Renderer(
        LetterTokenizer(chat_template=Path(TEMPLATES / "mistral.jinja").read_text().replace("bos_token", "''"))
    )
    (rendered,) = render(chat(user("hi"), assistant("ho")))
    letters = [chr(token) for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert letters == [" ", "h", "o", "$"]
