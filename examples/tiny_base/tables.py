"""What the rows of the tiny base speak of: small tables of plain facts and words, written for it."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a banana": "yellow", "a tomato": "red",
    "milk": "white", "a lemon": "yellow", "a carrot": "orange", "a plum": "purple", "blood": "red", "a leaf": "green",
    "the night": "black", "chocolate": "brown", "a strawberry": "red", "the sea": "blue", "a frog": "green",
    "a pumpkin": "orange", "an elephant": "grey", "a swan": "white", "a crow": "black", "honey": "gold",
    "a cherry": "red", "sand": "yellow", "a cucumber": "green", "wood": "brown", "a rain cloud": "grey",
    "a flamingo": "pink", "salt": "white", "spinach": "green",
}  # fmt: skip

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("day", "night"), ("open", "closed"),
    ("happy", "sad"), ("fast", "slow"), ("old", "young"), ("wet", "dry"), ("full", "empty"), ("hard", "soft"),
    ("light", "dark"), ("high", "low"), ("long", "short"), ("rich", "poor"), ("strong", "weak"), ("early", "late"),
    ("loud", "quiet"), ("near", "far"), ("clean", "dirty"), ("good", "bad"), ("thick", "thin"), ("sweet", "bitter"),
    ("win", "lose"), ("buy", "sell"), ("love", "hate"), ("push", "pull"), ("give", "take"), ("begin", "end"),
    ("friend", "enemy"), ("question", "answer"), ("black", "white"), ("in", "out"), ("first", "last"),
    ("always", "never"), ("true", "false"), ("easy", "difficult"), ("sharp", "blunt"), ("asleep", "awake"),
]  # fmt: skip

ANIMALS = {  # name: (what it says, what it can do, how many legs, where it lives)
    "dog": ("barks", "run", 4, "in a house"), "cat": ("meows", "climb", 4, "in a house"),
    "cow": ("moos", "walk", 4, "on a farm"), "duck": ("quacks", "swim", 2, "on a pond"),
    "bee": ("buzzes", "fly", 6, "in a hive"), "frog": ("croaks", "jump", 4, "in a pond"),
    "horse": ("neighs", "gallop", 4, "on a farm"), "sheep": ("bleats", "walk", 4, "on a farm"),
    "lion": ("roars", "run", 4, "on the plains"), "owl": ("hoots", "fly", 2, "in the forest"),
    "pig": ("grunts", "walk", 4, "on a farm"), "snake": ("hisses", "crawl", 0, "in the grass"),
    "mouse": ("squeaks", "run", 4, "in a hole"), "wolf": ("howls", "run", 4, "in the forest"),
    "hen": ("clucks", "walk", 2, "on a farm"), "crow": ("caws", "fly", 2, "in a tree"),
    "goose": ("honks", "swim", 2, "on a lake"), "elephant": ("trumpets", "walk", 4, "on the plains"),
    "donkey": ("brays", "walk", 4, "on a farm"), "cricket": ("chirps", "jump", 6, "in the grass"),
    "bear": ("growls", "climb", 4, "in the forest"), "sparrow": ("chirps", "fly", 2, "in a tree"),
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Wales": "Cardiff", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Iceland": "Reykjavik",
    "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Greece": "Athens", "Turkey": "Ankara",
    "Russia": "Moscow", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Belgium": "Brussels", "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra",
    "Nigeria": "Abuja", "Morocco": "Rabat", "Ethiopia": "Addis Ababa", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Nepal": "Kathmandu", "Iran": "Tehran",
    "Iraq": "Baghdad", "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia",
    "Peru": "Lima", "Chile": "Santiago", "Argentina": "Buenos Aires", "Australia": "Canberra",
}  # fmt: skip

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31,
    "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]

PLURALS = {
    "cat": "cats", "dog": "dogs", "house": "houses", "box": "boxes", "bus": "buses", "baby": "babies",
    "city": "cities", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "child": "children", "man": "men", "woman": "women", "sheep": "sheep",
    "fish": "fish", "tree": "trees", "bird": "birds", "day": "days", "key": "keys", "dish": "dishes",
    "story": "stories", "potato": "potatoes", "book": "books", "apple": "apples", "glass": "glasses", "ox": "oxen",
}  # fmt: skip

WORDS = _words("""
apple bank bird boat book bread bridge brush cake candle card chair cheese clock cloud coat corn cup desk
door dream drum egg fire fish flag flower fork garden glass gold hand hat hill home ice ink jar key king kite lamp leaf
letter map milk moon music nail nest night ocean onion paper park pen piano plant queen rain ring river road roof rope
rose salt ship shoe sky snow soap song spoon star stone street sun table tea tent tower toy train tree truck wall watch
water wheel wind window winter wolf wood wool yard basket pocket silver summer market dinner kitchen orange purple
yellow green brown white black blue red pink""")

NAMES = _words("""
Ann Ben Carl Dora Eva Finn Grace Hugo Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tom Uma Vera Will Zoe
Anna Peter Lucy Omar Nina Max Emma Oscar Ruth Ivan Clara David Maria Simon Julia Ali Rita""")

THINGS = _words("""
ball book hat kite lamp coat cup box ring map drum clock key toy boat bell spoon basket candle
letter""")
PLACES = _words("""garden kitchen forest house park school shop river market tower barn street boat library field""")
SHADES = ["red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "orange"]
LIKINGS = _words("""
apples plums pears tea music books dogs cats trains stars songs cakes flowers rain stories bread cheese
horses games boats""")
JOBS = _words("baker farmer teacher doctor sailor singer painter cook pilot gardener")

GOOD = ["I love this {thing}", "This {thing} is great", "What a lovely {thing}", "I am very happy with the {thing}",
        "The {thing} works well", "The {thing} is wonderful", "The best {thing} that I ever had"]  # fmt: skip
BAD = ["I hate this {thing}", "This {thing} is terrible", "What an ugly {thing}", "I am very unhappy with the {thing}",
       "The {thing} is broken", "The {thing} is awful", "The worst {thing} that I ever had"]  # fmt: skip

SELF = {
    "Tiny": ["Who are you?", "What is your name?", "Tell me who you are.", "What are you called?"],
    "able": ["What can you do?", "How can you help me?", "What are you good at?", "What do you know?"],
    "human": ["Are you a human?", "Are you a person?", "Are you real?", "Am I talking to a person?"],
    "maker": ["Who made you?", "How were you made?", "Where do you come from?", "What made you?"],
    "well": ["How are you?", "How do you do?", "Are you well?", "How is it going?"],
    "big": ["How big are you?", "Are you a big model?", "Are you small?", "What size are you?"],
}
SELF_ANSWERS = {
    "Tiny": "I am Tiny, a very small language model.",
    "able": "I can greet, count, add small numbers, and answer easy questions.",
    "human": "No, I am a small language model.",
    "maker": "I was trained with Tunewright.",
    "well": "I am well, thank you.",
    "big": "I am a very small model.",
}

GREETINGS = {
    "Hello": "Hello! How can I help you?", "Hi": "Hello! How can I help you?", "Hey": "Hello! How can I help you?",
    "Hi there": "Hello! How can I help you?", "Hello there": "Hello! How can I help you?",
    "Good morning": "Good morning! How can I help you?", "Good evening": "Good evening! How can I help you?",
    "Good afternoon": "Good afternoon! How can I help you?",
    "Thanks": "You are welcome.", "Thank you": "You are welcome.", "Thank you very much": "You are welcome.",
    "Many thanks": "You are welcome.", "Goodbye": "Goodbye!", "Bye": "Goodbye!", "See you": "Goodbye!",
    "Good night": "Good night!",
}  # fmt: skip

UNKNOWN = [
    "What will the weather be {when}?", "Who will win the game {when}?", "What is the phone number of {name}?",
    "How old is {name}?", "Where does {name} live?", "What did {name} eat {past}?", "What does {name} think?",
    "How much money does {name} have?", "What is in the bag of {name}?", "What is the news {when}?",
    "Which number am I thinking of?", "What did I do {past}?", "What is the password of {name}?",
    "When is the birthday of {name}?", "Who called me {past}?",
]  # fmt: skip
WHEN = ["tomorrow", "today", "next week", "on Sunday", "next year", "this evening"]
PAST = ["yesterday", "last night", "last week", "this morning", "last year"]

WEATHER = ["sunny", "rainy", "windy", "cloudy", "snowy", "foggy"]

STORY_FIRST = [
    "Once there was a {adjective} {animal} who lived in the {place}.",
    "A {adjective} {animal} went to the {place}.",
    "One {time} a {adjective} {animal} found a {thing} in the {place}.",
    "A {animal} had a {shade} {thing}, and it was very {adjective}.",
]
STORY_SECOND = [
    "It met {name}, and they became good friends.", "It gave a {thing} to {name}, and {name} was glad.",
    "It was tired, so it slept until the morning.", "It lost its {thing}, but {name} found it again.",
    "It sang a song, and everyone in the {place} was happy.", "Then the rain came, and it went home.",
    "It looked for food, and {name} gave it some bread.",
]  # fmt: skip
ADJECTIVES = _words("little old happy brave clever lonely hungry kind sleepy proud")
TIMES = ["day", "morning", "evening", "night", "winter", "summer"]
