"""Rows that the tiny base learns from: short conversations and texts, made from small grammars and tables.

Every row has a key: what it is about, and for facts of a table also how it is asked. Rows whose key falls into the
held-out share are never trained on, in no conversation, so that they measure more than memory: a sum of numbers that
were never added, or a known fact that was never asked for in these words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import tables as t

Message = dict[str, Any]

CALL = "<tool_call>{}</tool_call>"
HELD_OUT = 12
"""One key in so many is held out."""


@dataclass(frozen=True)
class Part:
    """One question with its answer, and what stands before it: earlier turns, or a system message, or tools."""

    key: str
    question: str
    answer: str | Message
    before: tuple[Message, ...] = ()
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def held_out(self) -> bool:
        return int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % HELD_OUT == 0

    @property
    def messages(self) -> list[Message]:
        answer = {"role": "assistant", "content": self.answer} if isinstance(self.answer, str) else self.answer
        asked = [{"role": "user", "content": self.question}] if self.question else []
        return [*self.before, *asked, answer]


def conversations(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows to train on: {"kind", "messages"}, some with "tools". A third join two or three questions that stand alone.

    The same seed gives the same rows.
    """
    random = Random(seed)
    for _ in range(count):
        kind = _draw(random)
        parts = [_part(random, kind)]
        if random.random() < 1 / 3 and kind in ALONE:
            parts += [_part(random, random.choice(ALONE)) for _ in range(random.choice((1, 1, 2)))]
        yield _row(kind, parts)


def held_out(each: int, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """For each kind at most so many rows whose keys are never trained on, none twice."""
    random = Random(f"held out {seed}")
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        drawn = (KINDS[kind][1](random) for _ in range(each * HELD_OUT * 6))
        rows = {json.dumps(row["messages"]): row for part in drawn if part.held_out for row in [_row(kind, [part])]}
        found[kind] = list(rows.values())[:each]
    return found


def documents(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Plain texts: stories of a few sentences, and facts as prose."""
    random = Random(f"documents {seed}")
    for _ in range(count):
        if random.random() < 0.5:
            yield {"text": " ".join(_story(random, random.choice(list(t.ANIMALS))) for _ in range(2))}
        else:
            yield {"text": " ".join(random.choice(FACTS)(random) for _ in range(random.randint(3, 6)))}


def spoken(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its kind, and calls of tools as the text that the chat template makes of them."""
    messages = [_spoken(message) for message in row["messages"]]
    return {key: value for key, value in {**row, "messages": messages}.items() if key != "kind"}


def _spoken(message: Message) -> Message:
    if not (calls := message.get("tool_calls")):
        return message
    return {"role": message["role"], "content": "".join(CALL.format(json.dumps(call["function"])) for call in calls)}


def _row(kind: str, parts: Sequence[Part]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "messages": [message for part in parts for message in part.messages]}
    return {**row, "tools": parts[0].tools} if parts[0].tools else row


def _draw(random: Random) -> str:
    return random.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]


def _part(random: Random, kind: str) -> Part:
    """A part that may be trained on."""
    while (part := KINDS[kind][1](random)).held_out:
        pass
    return part


def _asked(
    random: Random, kind: str, item: object, wordings: Sequence[str], answer: str | Message, **names: Any
) -> Part:
    """A question in one of several wordings, with its small accidents. How it is asked belongs to the key."""
    chosen = random.randrange(len(wordings))
    return Part(f"{kind}:{item}:{chosen}", _loosely(random, wordings[chosen].format(**names)), answer)


def _made(random: Random, kind: str, item: object, wordings: Sequence[str], answer: str, **names: Any) -> Part:
    """The same where what is asked about is itself new: it alone is the key."""
    return Part(f"{kind}:{item}", random.choice(wordings).format(**names), answer)


def _loosely(random: Random, question: str) -> str:
    """As people type: now and then politely, without a mark at the end, or without capitals."""
    draw = random.random()
    if draw < 0.1:
        return "Please tell me: " + question
    if draw < 0.2:
        return question.rstrip("?.")
    return question.lower() if draw < 0.3 else question


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


# One function a kind, in the order of the table below


def greeting(random: Random) -> Part:
    said = random.choice(list(t.GREETINGS))
    return Part(
        f"greeting:{said}:{(end := random.choice(['', '.', '!', ' Tiny', ', Tiny!']))}", said + end, t.GREETINGS[said]
    )


def itself(random: Random) -> Part:
    about = random.choice(list(t.SELF))
    return _asked(random, "itself", about, t.SELF[about], t.SELF_ANSWERS[about])


def colour(random: Random) -> Part:
    thing = random.choice(list(t.COLOURS))
    wordings = ["What colour is {x}?", "Which colour has {x}?", "Tell me the colour of {x}.", "The colour of {x}?",
                "Do you know the colour of {x}?"]  # fmt: skip
    return _asked(random, "colour", thing, wordings, f"{_sentence(thing)} is {t.COLOURS[thing]}.", x=thing)


def opposite(random: Random) -> Part:
    one, other = random.choice(t.OPPOSITES)[:: random.choice((1, -1))]
    wordings = ["What is the opposite of {x}?", "Tell me the opposite of {x}.", "The opposite of {x}?",
                "Which word is the opposite of {x}?"]  # fmt: skip
    return _asked(random, "opposite", one, wordings, f"The opposite of {one} is {other}.", x=one)


def animal(random: Random) -> Part:
    name = random.choice(list(t.ANIMALS))
    says, does, legs, lives = t.ANIMALS[name]
    a = _a(name)
    asked, answer = random.choice([
        (["What does {a} say?", "What sound does {a} make?", "How does {a} sound?"], f"{a} {says}."),
        (["What can {a} do?", "What does {a} do?", "Tell me what {a} can do."], f"{a} can {does}."),
        (["How many legs does {a} have?", "How many legs has {a}?", "Count the legs of {a}."], f"{a} has {legs} legs."),
        (["Where does {a} live?", "Where can I find {a}?", "Tell me where {a} lives."], f"{a} lives {lives}."),
    ])  # fmt: skip
    return _asked(random, "animal", answer, asked, _sentence(answer), a=a)


def capital(random: Random) -> Part:
    country = random.choice(list(t.CAPITALS))
    city = t.CAPITALS[country]
    if random.random() < 0.2:
        wordings = ["Which country has the capital {x}?", "{x} is the capital of which country?"]
        return _asked(random, "country", city, wordings, f"{city} is the capital of {country}.", x=city)
    wordings = ["What is the capital of {x}?", "Tell me the capital of {x}.", "Which city is the capital of {x}?",
                "The capital of {x}?", "Do you know the capital of {x}?"]  # fmt: skip
    return _asked(random, "capital", country, wordings, f"The capital of {country} is {city}.", x=country)


def calendar(random: Random) -> Part:
    months = list(t.MONTHS)
    kind = random.randrange(4)
    if kind == 0:
        month = random.choice(months)
        wordings = ["How many days are in {x}?", "How many days does {x} have?", "How long is {x}?"]
        return _asked(random, "days in", month, wordings, f"{month} has {t.MONTHS[month]} days.", x=month)
    if kind == 1:
        number = random.randrange(7)
        wordings = ["What is the {x} day of the week?", "Which day is the {x} of the week?"]
        answer = f"The {t.ORDINALS[number]} day of the week is {t.DAYS[number]}."
        return _asked(random, "day", number, wordings, answer, x=t.ORDINALS[number])
    circle, word = (t.DAYS, "day") if kind == 2 else (months, "month")
    here = random.randrange(len(circle))
    where, step = random.choice([("after", 1), ("before", -1)])
    other = circle[(here + step) % len(circle)]
    wordings = ["What {w} comes {where} {x}?", "Which {w} is {where} {x}?", "Tell me the {w} {where} {x}."]
    answer = f"{other} comes {where} {circle[here]}."
    return _asked(random, "next", (circle[here], where), wordings, answer, w=word, where=where, x=circle[here])


def counting(random: Random) -> Part:
    first = random.randint(0, 30)
    last = first + random.randint(2, 7)
    numbers = [str(n) for n in range(first, last + 1)]
    if random.random() < 0.3:
        wordings = ["Count down from {b} to {a}.", "Count back from {b} to {a}."]
        return _made(random, "down", (first, last), wordings, ", ".join(numbers[::-1]), a=first, b=last)
    wordings = ["Count from {a} to {b}.", "Please count from {a} to {b}.", "Write the numbers from {a} to {b}."]
    return _made(random, "count", (first, last), wordings, ", ".join(numbers), a=first, b=last)


def neighbour(random: Random) -> Part:
    number = random.randint(1, 98)
    where, step = random.choice([("after", 1), ("before", -1)])
    wordings = ["What number comes {w} {x}?", "Which number is {w} {x}?", "The number {w} {x}?"]
    return _made(
        random, "neighbour", (number, where), wordings, f"{number + step} comes {where} {number}.", w=where, x=number
    )


def addition(random: Random) -> Part:
    a, b = random.randint(0, 20), random.randint(0, 20)
    wordings = ["What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b}", "Add {a} and {b}.", "{a} plus {b}?"]
    return _made(random, "sum", (min(a, b), max(a, b)), wordings, f"{a} + {b} = {a + b}", a=a, b=b)


def subtraction(random: Random) -> Part:
    a = random.randint(0, 20)
    b = random.randint(0, a)
    wordings = ["What is {a} minus {b}?", "What is {a} - {b}?", "{a} - {b}", "Take {b} from {a}.", "{a} minus {b}?"]
    return _made(random, "difference", (a, b), wordings, f"{a} - {b} = {a - b}", a=a, b=b)


def comparing(random: Random) -> Part:
    a, b = random.sample(range(100), 2)
    word, answer = random.choice([("bigger", max(a, b)), ("smaller", min(a, b))])
    wordings = ["Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"]
    return _made(random, "comparing", (word, min(a, b), max(a, b)), wordings, f"{answer} is {word}.", w=word, a=a, b=b)


def yes_or_no(random: Random) -> Part:
    right = random.random() < 0.5
    kind = random.randrange(3)
    if kind == 0:
        thing = random.choice(list(t.COLOURS))
        true = t.COLOURS[thing]
        other = true if right else random.choice([shade for shade in t.SHADES if shade != true])
        answer = f"Yes, {thing} is {true}." if right else f"No, {thing} is {true}."
        return _asked(
            random, "is", (thing, other), ["Is {x} {y}?", "Is it true that {x} is {y}?"], answer, x=thing, y=other
        )
    if kind == 1:
        name = random.choice(list(t.ANIMALS))
        true = t.ANIMALS[name][0]
        other = true if right else random.choice(sorted({says for says, *_ in t.ANIMALS.values()} - {true}))
        answer = f"{'Yes' if right else 'No'}, {_a(name)} {true}."
        return _asked(
            random,
            "says",
            (name, other),
            ["True or not: {a} {y}?", "Is it true that {a} {y}?"],
            answer,
            a=_a(name),
            y=other,
        )
    country = random.choice(list(t.CAPITALS))
    true = t.CAPITALS[country]
    other = true if right else random.choice([city for city in t.CAPITALS.values() if city != true])
    answer = f"{'Yes' if right else 'No'}, the capital of {country} is {true}."
    wordings = ["Is {y} the capital of {x}?", "Is the capital of {x} {y}?"]
    return _asked(random, "capital is", (country, other), wordings, answer, x=country, y=other)


def echo(random: Random) -> Part:
    words = " ".join(random.sample(t.WORDS, random.randint(1, 4)))
    wordings = ["Say {x}.", "Repeat: {x}", "Repeat after me: {x}", "Say this: {x}", "Echo {x}"]
    return _made(random, "echo", words, wordings, words, x=words)


def upper(random: Random) -> Part:
    words = " ".join(random.sample(t.WORDS, random.randint(1, 2)))
    wordings = ["Say {x} in upper case.", "Write {x} in capital letters.", "Shout: {x}", "{x} in upper case?"]
    return _made(random, "upper", words, wordings, words.upper(), x=words)


def spelling(random: Random) -> Part:
    word = random.choice(t.WORDS)
    wordings = [
        "Spell {x}.",
        "How do you spell {x}?",
        "Spell the word {x}.",
        "The letters of {x}?",
        "How is {x} spelled?",
    ]
    return _asked(random, "spelling", word, wordings, " ".join(word), x=word)


def letters(random: Random) -> Part:
    word = random.choice(t.WORDS)
    which, answer = random.choice([("first", word[0]), ("last", word[-1])])
    wordings = ["What is the {w} letter of {x}?", "The {w} letter of {x}?", "Tell me the {w} letter of {x}."]
    return _asked(
        random, "letter", (word, which), wordings, f"The {which} letter of {word} is {answer}.", w=which, x=word
    )


def swapping(random: Random) -> Part:
    one, other = random.sample(t.WORDS, 2)
    kind = random.randrange(3)
    if kind == 0:
        return _made(
            random,
            "swap",
            (one, other),
            ["Swap these words: {a} {b}", "Swap {a} {b}"],
            f"{other} {one}",
            a=one,
            b=other,
        )
    words = random.sample(t.WORDS, random.randint(2, 4))
    which, answer = [("first", words[0]), ("last", words[-1])][kind - 1]
    wordings = ["What is the {w} word: {x}", "Give me the {w} word of this: {x}"]
    return _made(random, "word", (which, *words), wordings, answer, w=which, x=" ".join(words))


def plural(random: Random) -> Part:
    word = random.choice(list(t.PLURALS))
    wordings = ["What is the plural of {x}?", "Tell me the plural of {x}.", "One {x}, two what?", "The plural of {x}?"]
    return _asked(random, "plural", word, wordings, f"One {word}, two {t.PLURALS[word]}.", x=word)


def unknown(random: Random) -> Part:
    names = {"name": random.choice(t.NAMES), "when": random.choice(t.WHEN), "past": random.choice(t.PAST)}
    question = random.choice(t.UNKNOWN).format(**names)
    return Part(f"unknown:{question}", _loosely(random, question), "I do not know that.")


def mood(random: Random) -> Part:
    good = random.random() < 0.5
    shade, thing = random.choice(t.SHADES), random.choice(t.THINGS)
    said = random.choice(t.GOOD if good else t.BAD).format(thing=random.choice([thing, f"{shade} {thing}"]))
    wordings = ["Is this good or bad: {x}.", "Good or bad? {x}.", "Is this review good or bad? {x}."]
    return _made(random, "mood", said, wordings, "good" if good else "bad", x=said)


def reading(random: Random) -> Part:
    """A question about what was just said."""
    (who, other), (place, elsewhere) = random.sample(t.NAMES, 2), random.sample(t.PLACES, 2)
    (shade, second), (thing, also) = random.sample(t.SHADES, 2), random.sample(t.THINGS, 2)
    held, told = f"{_a(shade)} {thing}", f"{_a(second)} {also}"
    look = f"The {thing} is {shade}."
    said, question, answer = random.choice([
        (f"{who} has {held}.", f"What does {who} have?", f"{who} has {held}."),
        (f"{who} has {held}.", f"Who has {held}?", f"{who} has {held}."),
        (f"{who} has {held}. {other} has {told}.", f"What does {who} have?", f"{who} has {held}."),
        (f"{other} has {told}. {who} has {held}.", f"What does {who} have?", f"{who} has {held}."),
        (f"{who} is in the {place}. {other} is in the {elsewhere}.", f"Where is {who}?", f"{who} is in the {place}."),
        (f"{other} is in the {elsewhere}. {who} is in the {place}.", f"Where is {who}?", f"{who} is in the {place}."),
        (f"The {thing} is {shade}. The {also} is {second}.", f"What colour is the {thing}?", look),
        (f"The {also} is {second}. The {thing} is {shade}.", f"What colour is the {thing}?", look),
    ])  # fmt: skip
    return Part(f"reading:{said}", f"{said} {question}", answer)


def remembering(random: Random) -> Part:
    """A question about what the user said a turn ago."""
    name, liking, job = random.choice(t.NAMES), random.choice(t.LIKINGS), random.choice(t.JOBS)
    told, heard, questions, answer = random.choice([
        (f"My name is {name}.", f"Hello {name}!", ["What is my name?", "Who am I?"], f"Your name is {name}."),
        (f"I like {liking}.", f"It is nice that you like {liking}.", ["What do I like?"], f"You like {liking}."),
        (f"I am a {job}.", f"It is good to meet a {job}.", ["What am I?", "What is my job?"], f"You are a {job}."),
        (f"I am {name} and I like {liking}.", f"Hello {name}!", ["What do I like?"], f"You like {liking}."),
        (f"I am {name}, a {job}.", f"Hello {name}!", ["What is my job?"], f"You are a {job}."),
    ])  # fmt: skip
    before = ({"role": "user", "content": told}, {"role": "assistant", "content": heard})
    return Part(f"remembering:{told}", random.choice(questions), answer, before)


def obeying(random: Random) -> Part:
    """A system message that gives a name, or says how to answer."""
    if random.random() < 0.5:
        name = random.choice(t.NAMES)
        system = random.choice(["Your name is {x}.", "You are {x}.", "You are called {x}."]).format(x=name)
        question, answer = random.choice(["Who are you?", "What is your name?"]), f"I am {name}."
        return Part(f"system:{system}{question}", question, answer, ({"role": "system", "content": system},))
    part = random.choice([colour, opposite, capital, animal])(random)
    system = random.choice(["Answer in upper case.", "Write in capital letters."])
    assert isinstance(part.answer, str)
    return Part(part.key, part.question, part.answer.upper(), ({"role": "system", "content": system},))


def story(random: Random) -> Part:
    """Many answers are right: only the loss measures it."""
    name = random.choice(list(t.ANIMALS))
    wordings = ["Tell me a story about {a}.", "Write a short story about {a}.", "A story about {a}, please."]
    return _asked(random, "story", name, wordings, _story(random, name), a=_a(name))


def calling(random: Random) -> Part:
    """A question that a tool can answer, and after its result the answer."""
    tools = random.sample(TOOLS, random.randint(1, len(TOOLS)))
    name = tools[0]["function"]["name"]
    random.shuffle(tools)
    question, arguments, result, answer = _use(random, name)
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    if random.random() < 0.6:
        return Part(f"call:{question}", question, called, tools=tools)
    before = ({"role": "user", "content": question}, called, {"role": "tool", "content": result})
    return Part(f"call:{question}", "", answer, before, tools)


def _use(random: Random, name: str) -> tuple[str, dict[str, Any], str, str]:
    """The question, the arguments, what the tool says, and the answer."""
    if name == "get_weather":
        city, weather = random.choice(list(t.CAPITALS.values())), random.choice(t.WEATHER)
        asked = random.choice(
            ["What is the weather in {x}?", "How is the weather in {x}?", "Tell me the weather in {x}."]
        )
        return asked.format(x=city), {"city": city}, weather, f"It is {weather} in {city}."
    if name == "get_time":
        city, time = random.choice(list(t.CAPITALS.values())), f"{random.randint(0, 23)}:{random.randint(10, 59)}"
        asked = random.choice(["What time is it in {x}?", "How late is it in {x}?", "Tell me the time in {x}."])
        return asked.format(x=city), {"city": city}, time, f"It is {time} in {city}."
    item, price = random.choice(t.THINGS), str(random.randint(2, 99))
    asked = random.choice(["How much is the {x}?", "What does the {x} cost?", "Tell me the price of the {x}."])
    return asked.format(x=item), {"item": item}, price, f"The {item} costs {price}."


def _tool(name: str, about: str, parameter: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


TOOLS = [
    _tool("get_weather", "The weather in a city", "city"),
    _tool("get_time", "The time in a city", "city"),
    _tool("get_price", "The price of an item", "item"),
]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _story(random: Random, animal: str) -> str:
    names = {
        "animal": animal, "place": random.choice(t.PLACES), "thing": random.choice(t.THINGS),
        "shade": random.choice(t.SHADES), "name": random.choice(t.NAMES), "adjective": random.choice(t.ADJECTIVES),
        "time": random.choice(t.TIMES),
    }  # fmt: skip
    first, second = random.choice(t.STORY_FIRST), random.choice(t.STORY_SECOND)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", f"{first} {second}".format(**names))


FACTS: list[Callable[[Random], str]] = [
    lambda r: f"{_sentence(thing := r.choice(list(t.COLOURS)))} is {t.COLOURS[thing]}.",
    lambda r: f"The capital of {(land := r.choice(list(t.CAPITALS)))} is {t.CAPITALS[land]}.",
    lambda r: f"{_sentence(_a(name := r.choice(list(t.ANIMALS))))} {t.ANIMALS[name][0]}.",
    lambda r: "The opposite of {} is {}.".format(*r.choice(t.OPPOSITES)),
    lambda r: f"{(month := r.choice(list(t.MONTHS)))} has {t.MONTHS[month]} days.",
    lambda r: f"{r.choice(t.NAMES)} has {_a(r.choice(t.SHADES))} {r.choice(t.THINGS)} in the {r.choice(t.PLACES)}.",
]

KINDS: dict[str, tuple[int, Callable[[Random], Part]]] = {
    "greeting": (2, greeting),
    "itself": (3, itself),
    "colour": (3, colour),
    "opposite": (4, opposite),
    "animal": (5, animal),
    "capital": (5, capital),
    "calendar": (4, calendar),
    "counting": (3, counting),
    "neighbour": (3, neighbour),
    "addition": (6, addition),
    "subtraction": (4, subtraction),
    "comparing": (3, comparing),
    "yes or no": (6, yes_or_no),
    "echo": (4, echo),
    "upper": (5, upper),
    "spelling": (4, spelling),
    "letters": (3, letters),
    "swapping": (4, swapping),
    "plural": (2, plural),
    "unknown": (3, unknown),
    "mood": (3, mood),
    "reading": (8, reading),
    "remembering": (5, remembering),
    "obeying": (5, obeying),
    "story": (4, story),
    "calling": (5, calling),
}
"""How often a kind is drawn, and what makes it."""

ALONE = [kind for kind in KINDS if kind not in ("remembering", "obeying", "calling")]
"""Kinds that can stand anywhere in a conversation."""
