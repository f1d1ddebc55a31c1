"""What is asked: one task to learn and four that the model can do, each with questions to choose on and to report.

A row is what `ConversationData` reads. No concept, country or text is in two of the parts train, choose and report.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from real_model.pictures import Drawings, Emoji

NAME_IT = "Name this icon."
KIND_OF_IT = "What kind of thing is this?"
NUM_OPTIONS = 6
Row = dict[str, Any]


@dataclass
class Sizes:
    """How many concepts, countries and texts there are.

    Attributes:
        kind: concepts of each kind to train, to choose and to report on.
        kind_pictures: training pictures of each kind.
        named: concepts whose names the projector learns, asked about to choose and to report.
        name_pictures: of each of them and each style, for the projector.
        capitals: countries to choose and to report on.
        prose: texts to choose and to report on.
        instructions: to choose and to report on.
    """

    kind: tuple[int, int, int] = (40, 7, 18)
    kind_pictures: int = 80
    named: tuple[int, int] = (30, 50)
    name_pictures: int = 2
    capitals: tuple[int, int] = (60, 120)
    prose: tuple[int, int] = (24, 48)
    instructions: tuple[int, int] = (30, 60)


@dataclass
class Tasks:
    """Rows and the pictures that they name.

    Attributes:
        files: path without suffix, such as "report/kinds" -> rows.
        pictures: file -> picture.
        named: pictures and names for the projector.
    """

    files: dict[str, list[Row]] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    named: list[tuple[Image.Image, str]] = field(default_factory=list)

    def draw(self, drawings: Drawings, emoji: Emoji, style: str, chance: random.Random) -> str:
        """A new picture's file."""
        name = f"{len(self.pictures):04}.png"
        self.pictures[name] = drawings.picture(emoji, style, chance)
        return name


def _starts(*beginnings: str) -> Callable[[Emoji], bool]:
    return lambda emoji: emoji.subcategory.startswith(beginnings)


_NO_VEHICLE = frozenset(
    "seat station stop light lights traffic sign wheel buoy drum motorway track pump anchor parachute".split()
)
KINDS: Mapping[str, Callable[[Emoji], bool]] = {
    "animal": _starts("animal-"),
    "face": _starts("face-"),
    "flag": lambda emoji: emoji.category == "Flags",
    "food": lambda emoji: emoji.category == "Food & Drink",
    "person": _starts("person"),
    "symbol": lambda emoji: emoji.category == "Symbols",
    "vehicle": lambda emoji: (
        emoji.subcategory in ("transport-ground", "transport-air", "transport-water")
        and not set(emoji.concept.split()) & _NO_VEHICLE
    ),
}
_NAMED = ("animal-", "plant-", "food-", "drink", "dishware", "clothing", "tool", "musical", "household", "sky")


def named_concepts(drawings: Drawings, count: int, seed: int) -> list[Emoji]:
    """Concepts of one short word, so that a name is a name, in the order in which they are taken."""
    fitting = [each for each in drawings.emoji if each.concept.isalpha() and len(each.concept) <= 9]
    fitting = [each for each in fitting if each.subcategory.startswith(_NAMED)]
    return random.Random(f"{seed} named").sample(fitting, count)


def add_icons(tasks: Tasks, drawings: Drawings, concepts: Sequence[Emoji], sizes: Sizes, seed: int) -> None:
    """The projector's pictures, and other pictures of the same concepts to rank names for."""
    chance = random.Random(f"{seed} icons")
    for emoji in concepts:
        for style in drawings.styles:
            for _ in range(sizes.name_pictures):
                tasks.named.append((drawings.picture(emoji, style, chance), emoji.concept))
    names = [emoji.concept for emoji in concepts]
    for part, chosen in zip(("choose", "report"), _cut(concepts, sizes.named), strict=True):
        tasks.files[f"{part}/icons"] = [
            {
                "id": f"{emoji.concept}, {style}",
                "image": tasks.draw(drawings, emoji, style, chance),
                "question": NAME_IT,
                "answer": emoji.concept,
                "options": _options(emoji.concept, names, chance),
            }
            for emoji in chosen
            for style in drawings.styles
        ]


def add_kinds(tasks: Tasks, drawings: Drawings, named: Sequence[Emoji], sizes: Sizes, seed: int) -> None:
    """The task to learn: which of seven kinds of thing it is.

    Raises:
        ValueError: a kind has too few concepts.
    """
    chance = random.Random(f"{seed} kinds")
    taken = {emoji.concept for emoji in named}
    rows: dict[str, list[Row]] = {"train": [], "choose/kinds": [], "report/kinds": []}
    for kind, fits in KINDS.items():
        fitting = [each for each in drawings.emoji if fits(each) and each.concept not in taken]
        chance.shuffle(fitting)
        asked = sizes.kind[1] + sizes.kind[2]
        if len(fitting) <= asked:
            raise ValueError(f"got {len(fitting)} concepts of the kind {kind!r}, expected more than {asked}")
        choose, report, train = _cut(fitting, (sizes.kind[1], sizes.kind[2], sizes.kind[0]))
        shown = [(emoji, style) for emoji in train for style in drawings.styles]
        for number in range(sizes.kind_pictures):
            emoji, style = shown[number % len(shown)]
            image = tasks.draw(drawings, emoji, style, chance)
            said = [{"from": "human", "value": f"<image>{KIND_OF_IT}"}, {"from": "gpt", "value": kind}]
            rows["train"].append({"id": f"{emoji.concept}, {style}, {number}", "image": image, "conversations": said})
        for name, part in (("choose/kinds", choose), ("report/kinds", report)):
            rows[name] += [
                {
                    "id": f"{emoji.concept}, {style}",
                    "image": tasks.draw(drawings, emoji, style, chance),
                    "question": KIND_OF_IT,
                    "answer": kind,
                }
                for emoji in part
                for style in drawings.styles
            ]
    chance.shuffle(rows["train"])
    tasks.files |= rows


def add_capitals(tasks: Tasks, countries: Sequence[Mapping[str, Any]], sizes: Sizes, seed: int) -> None:
    """Whole sentences with the right capital and with those of other countries of the region.

    Members of the United Nations, less those whose capital is named after them or which have several.
    """
    chance = random.Random(f"{seed} capitals")
    capitals = {}
    for each in countries:
        name = each["name"]["common"]
        if each["unMember"] and len(each["capital"]) == 1 and each["capital"][0].split()[0][:4] not in name:
            capitals[name] = (each["region"], each["capital"][0])
    asked = sorted(capitals)
    chance.shuffle(asked)
    for part, chosen in zip(("choose", "report"), _cut(asked, sizes.capitals), strict=True):
        rows = []
        for name in chosen:
            region, capital = capitals[name]
            others = sorted({other for where, other in capitals.values() if where == region})
            called = f"the {name}" if name.startswith("United") or name in _WITH_ARTICLE else name
            options = _options(capital, others, chance)
            rows.append(
                {
                    "question": f"What is the capital of {called}?",
                    "answer": f"The capital of {called} is {capital}.",
                    "options": [f"The capital of {called} is {option}." for option in options],
                }
            )
        tasks.files[f"{part}/capitals"] = rows


_WITH_ARTICLE = frozenset(
    "Bahamas,Gambia,Netherlands,Philippines,Maldives,Seychelles,Comoros,Central African Republic,Dominican Republic,"
    "Republic of the Congo,DR Congo,Solomon Islands,Marshall Islands".split(",")
)


def add_prose(tasks: Tasks, collected: str, sizes: Sizes, seed: int) -> None:
    """English that people wrote: the first 60 words of quotations of at least so many, without names of who said it."""
    quoted = [" ".join(each.split("\n\t\t--")[0].split()) for each in collected.split("\n%\n")]
    texts = sorted({" ".join(each.split()[:60]) for each in quoted if _is_prose(each)})
    random.Random(f"{seed} prose").shuffle(texts)
    for part, chosen in zip(("choose", "report"), _cut(texts, sizes.prose), strict=True):
        tasks.files[f"{part}/prose"] = [{"answer": text} for text in chosen]


def _is_prose(text: str) -> bool:
    plain = sum(c.isalpha() or c == " " for c in text)
    return 60 <= len(text.split()) <= 120 and text.isascii() and plain > 0.93 * len(text)


def add_instructions(tasks: Tasks, asked: Sequence[str], answers: Sequence[str], sizes: Sizes, seed: int) -> None:
    """Instructions with what the base itself says: how likely it stays is how far instructions are still followed.

    Args:
        tasks: takes the rows.
        asked: instructions.
        answers: of the base; what it says nothing to is left out.
        sizes: of the parts.
        seed: of the order.
    """
    rows = [{"question": each, "answer": answer} for each, answer in zip(asked, answers, strict=True) if answer]
    random.Random(f"{seed} instructions").shuffle(rows)
    for part, chosen in zip(("choose", "report"), _cut(rows, sizes.instructions), strict=True):
        tasks.files[f"{part}/instructions"] = list(chosen)


def _options(right: str, all_of_them: Sequence[str], chance: random.Random) -> list[str]:
    others = [each for each in all_of_them if each != right]
    options = [right, *chance.sample(others, min(NUM_OPTIONS - 1, len(others)))]
    chance.shuffle(options)
    return options


def _cut(items: Sequence[Any], lengths: Sequence[int]) -> list[Sequence[Any]]:
    """Parts one after the other, of at most these lengths."""
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [items[start : start + length] for start, length in zip(starts, lengths, strict=True)]
