"""Which answers a writer can write: those that end within its token slots.

A longer one would be cut, and the cut text be taught as a whole query. A loser of the same tokens as what was taken
would be taught as worse than itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from crops_jax.errors import InputError
from crops_jax.suggestions.examples import Example, blocks
from crops_jax.suggestions.reading import WriterText

_AT_ONCE = 4_096  # examples whose answers become tokens together


@dataclass
class LeftOut:
    """What was left out of the examples, counted while they are read."""

    answers_too_long: int = 0  # examples
    losers_too_long: int = 0
    losers_of_equal_tokens: int = 0  # as what was taken


def writable_examples(examples: Iterable[Example], text: WriterText, left_out: LeftOut) -> Iterator[Example]:
    """The examples whose answer the writer can write, with those of their losers that it can write, too.

    Raises:
      InputError: it can write none of the answers.
    """
    most, kept = text.config.max_query_tokens, 0
    for block in blocks(examples, _AT_ONCE):
        different = sorted({query for example in block for query in (example.chosen, *example.rejected)})
        tokens = dict(zip(different, text.whole_answers(different, most), strict=True))
        for example in block:
            chosen = tokens[example.chosen]
            if chosen is None:
                left_out.answers_too_long += 1
                continue
            losers = [tokens[query] for query in example.rejected]
            left_out.losers_too_long += losers.count(None)
            left_out.losers_of_equal_tokens += losers.count(chosen)
            places = [n for n, loser in enumerate(losers) if loser is not None and loser != chosen]
            rejected = [example.rejected[n] for n in places]
            kept += 1
            yield replace(example, rejected=rejected, weight=example.weight[places])
    if not kept and left_out.answers_too_long:
        said = f"{most}: each of the {left_out.answers_too_long} answers to learn from has more tokens; set it higher"
        raise InputError("suggest.max_query_tokens", said)
