"""The words of the synthetic world: senses, facets, invented names, and texts put together from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

_ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io")
_CODAS = ("l", "n", "r", "s", "x", "m", "")
_TITLES = (
    "{name}: {facet} with {a}",
    "{a} and {b}, {facet}",
    "{facet} | {name}",
    "{name} {a} {facet}",
    "{a}, {b}: {facet}",
)
_CAPTIONS = (
    "In this video we look at {a} and {b}, with some {f1} and {f2} about {c}.",
    "Today: {a}. Watch until the end for {b} and {c}. {f1} {f2}",
    "Everything about {a}, {b} and {c} that I wish I had known, {f1} and {f2}.",
    "{who} shows {a} next to {b}; a {f1} about {c} with {f2}.",
    "My {f1} on {c}: {a}, {b}, and a little {f2}.",
)
_ALIASES_IN_RARE_ITEMS = 0.35


@dataclass(frozen=True)
class Sense:
    """One meaning of a head word; `rank` 0 is the dominant one."""

    head: str
    name: str
    aliases: tuple[str, ...]
    usual: tuple[str, ...]
    rare: tuple[str, ...]
    outside: tuple[str, ...]
    rank: int


@dataclass(frozen=True)
class Facet:
    """What a video can be about any subject (a beginner's guide, its history, ...)."""

    name: str
    asked: tuple[str, ...]
    usual: tuple[str, ...]
    rare: tuple[str, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """One facet of one sense."""

    sense: Sense
    facet: Facet
    sense_id: int

    @property
    def name(self) -> str:
        """For people and for the truth tables, such as "transformer / power transformer / history"."""
        return f"{self.sense.head} / {self.sense.name} / {self.facet.name}"


def _rows(file: str) -> list[list[str]]:
    lines = files("crops_jax.simulate").joinpath(file).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if line and not line.startswith("#")]


def _words(cell: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in cell.split(","))


@cache
def read_senses() -> tuple[Sense, ...]:
    """All senses of `senses.txt`, in file order."""
    rank: dict[str, int] = {}
    out = []
    for head, name, *cells in _rows("senses.txt"):
        rank[head] = rank.get(head, -1) + 1
        out.append(Sense(head, name, *map(_words, cells), rank[head]))
    return tuple(out)


@cache
def read_facets() -> tuple[Facet, ...]:
    """All facets of `facets.txt`, in file order."""
    return tuple(Facet(name, *map(_words, cells)) for name, *cells in _rows("facets.txt"))


class Writer:
    """Writes queries and items; every call draws from one generator, so order of calls matters."""

    def __init__(self, config, rng: np.random.Generator):
        self._config, self._rng = config, rng
        self._who: dict[str, list[str]] = {}

    def _one(self, words: tuple[str, ...] | list[str]) -> str:
        return words[int(self._rng.integers(len(words)))]

    def _some(self, words: tuple[str, ...], n: int) -> list[str]:
        return [words[k] for k in self._rng.permutation(len(words))[:n]]

    def _names(self, intent: Intent) -> list[str]:
        """Three invented makers or hosts that belong to the intent, in items as in queries."""
        if intent.name not in self._who:
            self._who[intent.name] = [self._invent() for _ in range(3)]
        return self._who[intent.name]

    def _invent(self) -> str:
        syllables = [self._one(_ONSETS) + self._one(_VOWELS) for _ in range(2)]
        return "".join(syllables) + self._one(_CODAS)

    def queries(self, intents: list[Intent]) -> tuple[list[str], list[dict[str, list[int]]]]:
        """(query strings, for each intent {"head": [q], "sense": [q...], "specific": [q...]} of row numbers)."""
        number: dict[str, int] = {}
        levels = []
        for intent in intents:
            sense = [intent.sense.name, *intent.sense.aliases]
            specific = [self._specific(intent, k) for k in range(self._config.queries_per_intent)]
            texts = {"head": [intent.sense.head], "sense": sense, "specific": specific}
            levels.append({k: sorted({number.setdefault(t, len(number)) for t in v}) for k, v in texts.items()})
        self._queries = list(number)
        return self._queries, levels

    def _specific(self, intent: Intent, k: int) -> str:
        """The k-th way of asking: by name and facet, by an alias, by a rare word, by a usual word, by a maker."""
        s, asked = intent.sense, intent.facet.asked
        match k % 5:
            case 0:
                return f"{s.name} {asked[0]}"
            case 1:
                return f"{self._one(s.aliases)} {self._one(asked)}"
            case 2:
                return f"{self._one(s.rare)} {self._one(s.usual)} {self._one(intent.facet.usual)}"
            case 3:
                return f"{self._one(s.usual)} {self._one(asked)}"
            case _:
                return f"{self._one(self._names(intent))} {self._one(s.usual)}"

    def item(self, intent: Intent, second: Intent | None, asked_by: list[int]) -> dict[str, str]:
        """The four text fields of a platform item; `asked_by` are rows of queries that people found it with."""
        rare = self._rng.random() < self._config.rare_share
        name = self._name(intent.sense, rare)
        text = self._text(intent, second, name, self._mix(intent.sense, rare), self._mix(intent.facet, rare))
        if not rare and self._rng.random() < self._config.click_query_share:
            text["click_query"] = "|".join(self._queries[q] for q in asked_by[:2])
        return text

    def hidden_item(self, intent: Intent) -> dict[str, str]:
        """An item of the outside world: its own words, words of the few, and the head word named."""
        words = self._some(intent.sense.outside, 2) + self._some(intent.sense.rare, 4)
        facet = self._some(intent.facet.outside, 1) + self._some(intent.facet.rare, 3)
        text = self._text(intent, None, intent.sense.name, words, facet)
        return text | {"click_query": f"{intent.sense.head}|{intent.sense.name} {intent.facet.asked[0]}"}

    def _name(self, sense: Sense, rare: bool) -> str:
        draw = self._rng.random()
        if rare:
            return self._one(sense.aliases) if draw < _ALIASES_IN_RARE_ITEMS else self._one(sense.rare)
        return sense.name if draw < self._config.head_word_share else self._one(sense.aliases + sense.usual)

    def _mix(self, part: Sense | Facet, rare: bool) -> list[str]:
        """Five words of one register, the last from the other register in some items: what joins the two."""
        main, other = (part.rare, part.usual) if rare else (part.usual, part.rare)
        if self._rng.random() < self._config.bridge_share:
            return self._some(main, 4) + self._some(other, 1)
        return self._some(main, 5)

    def _text(self, intent: Intent, second: Intent | None, name: str, words: list[str], facet: list[str]):
        about = facet[:3] + ([self._one(second.facet.usual)] * 2 if second else [])
        host = self._one(self._names(intent))
        title = self._one(_TITLES).format(name=name, facet=self._one(facet), a=words[0], b=words[1])
        caption = self._one(_CAPTIONS).format(
            a=words[2], b=words[3], c=words[-1], f1=self._one(about), f2=self._one(about), who=host
        )
        tags = [*self._some(tuple(words), 3), self._one(about), *([host] if self._rng.random() < 0.4 else [])]
        return {"ocr_cover": title[0].upper() + title[1:], "photo_caption": caption, "keyword": "|".join(tags)}
