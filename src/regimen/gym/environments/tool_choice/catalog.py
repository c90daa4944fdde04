"""The tools of the generated tasks, and requests for them.

Each tool has a schema and a way to ask for it: a sentence whose words give every argument, and the arguments. Left out
of the sentence is now and then what has a default, and, where `lacking` is asked for, an argument that is required.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

CITIES = ("Lima", "Oslo", "Nairobi", "Hanoi", "Quebec", "Porto", "Perth", "Cairo", "Dublin", "Osaka", "Bogota", "Riga")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lina")
LABELS = ("pasta", "laundry", "tea", "bread", "workout", "nap", "meeting", "parking")
PLACES = ("Luna", "The Old Mill", "Bistro 9", "Sakura", "Casa Verde", "Harbour View", "Nonna", "Blue Door")
TEXTS = (
    "On my way", "Call me later", "The keys are under the mat", "Happy birthday", "Dinner is ready", "I will be late",
    "Bring an umbrella", "The train is delayed", "See you at noon", "Do not forget the tickets",
)  # fmt: skip
CHORES = (
    "water the plants",
    "pay the rent",
    "call the dentist",
    "renew the passport",
    "take out the bins",
    "feed the cat",
)
ARTISTS = ("Miles Davis", "Bjork", "Fela Kuti", "Nina Simone", "Kraftwerk", "Cesaria Evora", "Ravi Shankar", "Abba")
GOODS = ("lemons", "candles", "onions", "batteries", "towels", "eggs", "apples", "notebooks", "socks", "bulbs")
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "SEK")
LANGUAGES = ("German", "French", "Spanish", "Italian", "Polish", "Swahili")
ROOMS = ("kitchen", "bedroom", "bathroom", "office", "hall")
COLOURS = ("white", "red", "green", "blue")
SYMBOLS = ("ACME", "GLOB", "INIT", "UMBR", "WAYN", "STRK", "HOOL", "PIED", "VAND", "DUFF", "OSCP", "TYRL")


class Asked(msgspec.Struct, frozen=True):
    """A sentence that asks for a call; `lacking` names the required argument that it does not give."""

    text: str
    arguments: dict[str, Any]
    lacking: str | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool: its schema, and requests for it."""

    name: str
    description: str
    properties: dict[str, Any]
    required: list[str]
    ask: Callable[[random.Random, bool], Asked]

    def definition(self) -> dict[str, Any]:
        """The tool as a task row has it."""
        parameters = {
            "type": "object",
            "properties": self.properties,
            "required": self.required,
            "additionalProperties": False,
        }
        return {"type": "function", "name": self.name, "description": self.description, "parameters": parameters}


def _sometimes(generator: random.Random) -> bool:
    return generator.random() < 0.5


def _date(generator: random.Random) -> str:
    return f"2026-{generator.randint(1, 12):02}-{generator.randint(1, 28):02}"


def _time(generator: random.Random) -> str:
    return f"{generator.randint(11, 22)}:{generator.choice((0, 15, 30, 45)):02}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _weather(generator: random.Random, lacking: bool) -> Asked:
    day, city = generator.choice(("today", "tomorrow")), generator.choice(CITIES)
    arguments: dict[str, Any] = {"day": day}
    unit = ""
    if _sometimes(generator):
        arguments["unit"] = generator.choice(("celsius", "fahrenheit"))
        unit = f" in {arguments['unit']}"
    if lacking:
        return Asked(f"Look up the weather for {day}{unit}.", arguments, "city")
    return Asked(f"Look up the weather in {city} for {day}{unit}.", {**arguments, "city": city})


def _timer(generator: random.Random, lacking: bool) -> Asked:
    minutes = generator.choice((generator.randint(1, 90), generator.randint(1, 40) + 0.5))
    label = generator.choice(LABELS)
    if lacking:
        return Asked(f'Set a timer with the label "{label}".', {"label": label}, "minutes")
    if _sometimes(generator):
        return Asked(
            f'Set a timer of {minutes} minutes with the label "{label}".', {"minutes": minutes, "label": label}
        )
    return Asked(f"Set a timer of {minutes} minutes.", {"minutes": minutes})


def _convert(generator: random.Random, lacking: bool) -> Asked:
    source, target = generator.sample(CURRENCIES, 2)
    amount = generator.choice((generator.randint(5, 2000), generator.randint(500, 9000) / 100))
    if lacking:
        return Asked(f"Convert {amount} {source}.", {"amount": amount, "source": source}, "target")
    arguments = {"amount": amount, "source": source, "target": target}
    return Asked(f"Convert {amount} {source} to {target}.", arguments)


def _table(generator: random.Random, lacking: bool) -> Asked:
    place, guests, time = generator.choice(PLACES), generator.randint(2, 12), _time(generator)
    arguments: dict[str, Any] = {"restaurant": place, "guests": guests}
    wishes: dict[str, Any] = {}
    said = ""
    if _sometimes(generator):
        wishes["outside"], said = True, ", outside"
    if _sometimes(generator):
        wishes["high_chairs"] = generator.randint(1, 3)
        said += f", with {wishes['high_chairs']} high chairs" if wishes["high_chairs"] > 1 else ", with 1 high chair"
    if wishes:
        arguments["wishes"] = wishes
    if lacking:
        return Asked(f'Book a table at "{place}" for {guests} guests{said}.', arguments, "time")
    return Asked(f'Book a table at "{place}" for {guests} guests at {time}{said}.', {**arguments, "time": time})


def _message(generator: random.Random, lacking: bool) -> Asked:
    people, text = generator.sample(NAMES, generator.randint(1, 3)), generator.choice(TEXTS)
    if lacking:
        return Asked(f'Send the message "{text}".', {"text": text}, "recipients")
    return Asked(f'Send the message "{text}" to {_listed(people)}.', {"recipients": people, "text": text})


def _reminder(generator: random.Random, lacking: bool) -> Asked:
    text, date = generator.choice(CHORES), _date(generator)
    arguments: dict[str, Any] = {"text": text}
    said = ""
    if _sometimes(generator):
        arguments["repeat"] = generator.choice(("daily", "weekly"))
        said = f", repeated {arguments['repeat']}"
    if lacking:
        return Asked(f'Create a reminder with the text "{text}"{said}.', arguments, "date")
    return Asked(f'Create a reminder with the text "{text}" on {date}{said}.', {**arguments, "date": date})


def _music(generator: random.Random, lacking: bool) -> Asked:
    artist = generator.choice(ARTISTS)
    arguments: dict[str, Any] = {}
    said = ""
    if _sometimes(generator):
        arguments["shuffle"], said = True, " in random order"
    if _sometimes(generator):
        arguments["volume"] = generator.randint(1, 10)
        said += f" at volume {arguments['volume']}"
    if lacking:
        return Asked(f"Play music{said}.", arguments, "artist")
    return Asked(f"Play music by {artist}{said}.", {**arguments, "artist": artist})


def _translate(generator: random.Random, lacking: bool) -> Asked:
    text, language = generator.choice(TEXTS), generator.choice(LANGUAGES)
    formal = {"formal": True} if _sometimes(generator) else {}
    said = ", in a formal tone" if formal else ""
    if lacking:
        return Asked(f'Translate "{text}"{said}.', {"text": text, **formal}, "language")
    return Asked(f'Translate "{text}" into {language}{said}.', {"text": text, "language": language, **formal})


def _list(generator: random.Random, lacking: bool) -> Asked:
    goods = generator.sample(GOODS, generator.randint(1, 3))
    items = [{"name": name, "quantity": generator.randint(2, 9)} for name in goods]
    said = _listed([f"{item['quantity']} {item['name']}" for item in items])
    if lacking:
        return Asked(f"Add {said} to my list.", {"items": items}, "list")
    kind = generator.choice(("shopping", "packing"))
    return Asked(f"Add {said} to my {kind} list.", {"list": kind, "items": items})


def _route(generator: random.Random, lacking: bool) -> Asked:
    start, end = generator.sample(CITIES, 2)
    arguments: dict[str, Any] = {"end": end}
    said = ""
    if _sometimes(generator):
        arguments["mode"] = generator.choice(("train", "bike"))
        said = f" by {arguments['mode']}"
    if _sometimes(generator):
        arguments["avoid"] = generator.sample(("tolls", "ferries", "motorways"), generator.randint(1, 2))
        said += f", avoiding {_listed(arguments['avoid'])}"
    if lacking:
        return Asked(f"Find the way to {end}{said}.", arguments, "start")
    return Asked(f"Find the way from {start} to {end}{said}.", {**arguments, "start": start})


def _light(generator: random.Random, lacking: bool) -> Asked:
    room, brightness = generator.choice(ROOMS), generator.randint(1, 100)
    arguments: dict[str, Any] = {"brightness": brightness}
    said = ""
    if _sometimes(generator):
        arguments["colour"] = generator.choice(COLOURS)
        said = f" in {arguments['colour']}"
    if lacking:
        return Asked(f"Set the light to a brightness of {brightness}{said}.", arguments, "room")
    return Asked(f"Set the light in the {room} to a brightness of {brightness}{said}.", {**arguments, "room": room})


def _price(generator: random.Random, lacking: bool) -> Asked:
    symbol = generator.choice(SYMBOLS)
    days = {"days": generator.randint(2, 30)} if _sometimes(generator) else {}
    said = f" over the last {days['days']} days" if days else ""
    if lacking:
        return Asked(f"Look up the price of the share{said}.", days, "symbol")
    return Asked(f"Look up the price of the share {symbol}{said}.", {"symbol": symbol, **days})


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _one_of(values: tuple[str, ...], **more: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(values), **more}


_ITEM = {
    "type": "object",
    "properties": {"name": _text("What it is."), "quantity": {"type": "integer", "default": 1}},
    "required": ["name"],
    "additionalProperties": False,
}
_WISHES = {
    "type": "object",
    "properties": {
        "outside": {"type": "boolean", "default": False},
        "high_chairs": {"type": "integer", "default": 0},
    },
    "additionalProperties": False,
    "default": {},
}

TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "get_weather",
            "The weather in a city, today or tomorrow.",
            {
                "city": _text("Name of the city."),
                "day": _one_of(("today", "tomorrow")),
                "unit": _one_of(("celsius", "fahrenheit"), default="celsius"),
            },
            ["city", "day"],
            _weather,
        ),
        Tool(
            "set_timer",
            "Starts a timer.",
            {"minutes": {"type": "number"}, "label": {"type": "string", "default": "timer"}},
            ["minutes"],
            _timer,
        ),
        Tool(
            "convert_currency",
            "Converts an amount of money.",
            {"amount": {"type": "number"}, "source": _one_of(CURRENCIES), "target": _one_of(CURRENCIES)},
            ["amount", "source", "target"],
            _convert,
        ),
        Tool(
            "book_table",
            "Books a table at a restaurant, for today.",
            {
                "restaurant": _text("Name of the restaurant."),
                "guests": {"type": "integer"},
                "time": _text("As HH:MM."),
                "wishes": _WISHES,
            },
            ["restaurant", "guests", "time"],
            _table,
        ),
        Tool(
            "send_message",
            "Sends a text message to people, all in one call.",
            {
                "recipients": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                "text": _text("The message, word for word."),
            },
            ["recipients", "text"],
            _message,
        ),
        Tool(
            "create_reminder",
            "Creates a reminder.",
            {
                "text": _text("What to remember, word for word."),
                "date": _text("As YYYY-MM-DD."),
                "repeat": _one_of(("never", "daily", "weekly"), default="never"),
            },
            ["text", "date"],
            _reminder,
        ),
        Tool(
            "play_music",
            "Plays music by an artist.",
            {
                "artist": _text("Name of the artist."),
                "shuffle": {"type": "boolean", "default": False},
                "volume": {"type": "integer", "description": "From 1 to 10; left alone when not given."},
            },
            ["artist"],
            _music,
        ),
        Tool(
            "translate",
            "Translates a text from English.",
            {
                "text": _text("The text, word for word."),
                "language": _one_of(LANGUAGES),
                "formal": {"type": "boolean", "default": False},
            },
            ["text", "language"],
            _translate,
        ),
        Tool(
            "add_to_list",
            "Adds items to a list, all in one call.",
            {
                "list": _one_of(("shopping", "packing")),
                "items": {"type": "array", "items": _ITEM, "uniqueItems": True},
            },
            ["list", "items"],
            _list,
        ),
        Tool(
            "find_route",
            "Finds the way from one city to another.",
            {
                "start": _text("Name of the city."),
                "end": _text("Name of the city."),
                "mode": _one_of(("car", "train", "bike"), default="car"),
                "avoid": {
                    "type": "array",
                    "items": _one_of(("tolls", "ferries", "motorways")),
                    "uniqueItems": True,
                    "default": [],
                },
            },
            ["start", "end"],
            _route,
        ),
        Tool(
            "set_light",
            "Sets the light in a room.",
            {
                "room": _one_of(ROOMS),
                "brightness": {"type": "integer", "description": "In percent."},
                "colour": _one_of(COLOURS, description="Left alone when not given."),
            },
            ["room", "brightness"],
            _light,
        ),
        Tool(
            "get_share_price",
            "The price of a share, now or over the last days.",
            {
                "symbol": _text("Symbol of the share."),
                "days": {"type": "integer", "description": "How many days; now when not given."},
            },
            ["symbol"],
            _price,
        ),
    )
}
