"""The queries related to a prefix, seen before or not: those whose vectors are near to its enhanced vector."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from crops_jax.normal_text import normal_form
from crops_jax.suggestions.config import QuantiserConfig, RelatedConfig
from crops_jax.suggestions.nearest import Encode, encoded
from crops_jax.suggestions.prefix_queries import PrefixQueries
from crops_jax.suggestions.searched import dictionary
from crops_jax.suggestions.semantic_index import SemanticIndex, build_index, enhanced


def index_of_day(searched: pa.Table, encode: Encode, encoder: str, config: QuantiserConfig) -> SemanticIndex:
    """A semantic index over what was searched on a day.

    Args:
      searched: rows of `searched.SEARCHED`.
      encode: gives queries their vectors.
      encoder: the hash of what does (`encoder_hash`).

    Raises:
      InputError: as `build_index`; nothing was searched.
    """
    queries = dictionary(searched)
    return build_index(queries, encoded(encode, queries, "vectors of the dictionary"), encoder, config)


class RelatedQueries:
    """Looks up the queries related to prefixes.

    e* = (1 - w) e(prefix) + w mean of e(q) over the queries q that co-occur with the prefix; of a prefix that nobody
    typed, e* = e(prefix). Queries that co-occur and are not in the dictionary have no vector, and do not count.

    A different prefix costs one text for the encoder, the mean of its co-occurring vectors, and a lookup: the codes of
    its vector, O(log N) in the dictionary of N for each level of the id, and the cosines of the queries that share the
    id or, where these are too few, as many of its first codes as leave enough: at worst of all N.
    """

    def __init__(
        self, index: SemanticIndex, encode_prefix: Encode, prefix_query: pa.Table, config: RelatedConfig | None = None
    ):
        """Takes a dictionary, and which of its queries belong to which prefix.

        Args:
          encode_prefix: gives prefixes vectors in the room of those of the dictionary; they come in their normal form.
          prefix_query: rows of `co_occurrence.PREFIX_QUERY`.
          config: None: the default.
        """
        self.index, self.config = index, config or RelatedConfig()
        self._encode, self._co_occurring = encode_prefix, PrefixQueries(prefix_query)
        self._row = {query: row for row, query in enumerate(index.queries)}

    def of(self, prefixes: Sequence[str], apart: Sequence[Collection[str]] | None = None) -> list[list[str]]:
        """The related queries of each prefix in any spelling, the nearest first; none for one without text.

        Args:
          apart: for each prefix, co-occurring queries that do not count for its vector (they may be found all the
            same); None: all count.

        Raises:
          InputError: the encoder's vectors are not finite, or have another width than the dictionary's.
        """
        forms = [normal_form(prefix) for prefix in prefixes]
        asked = [(form, frozenset(left)) for form, left in zip(forms, apart or [()] * len(forms), strict=True)]
        different = [one for one in dict.fromkeys(asked) if one[0]]
        found: dict[tuple[str, frozenset[str]], list[str]] = {}
        if different:
            related = self.index.related(self.vectors(*zip(*different, strict=True)), self.config.count)
            found |= zip(different, related, strict=True)
        return [found.get(one, []) for one in asked]

    def vectors(self, forms: Sequence[str], apart: Sequence[Collection[str]] | None = None) -> np.ndarray:
        """float32[n, D]: e* of prefixes in their normal form.

        Args:
          apart: as for `of`.

        Raises:
          InputError: as `of`.
        """
        place = {form: n for n, form in enumerate(dict.fromkeys(forms))}
        own = encoded(self._encode, list(place), "vectors of prefixes")[[place[form] for form in forms]]
        co_occurring = []
        for form, left in zip(forms, apart or [()] * len(forms), strict=True):
            counted = (q for q in self._co_occurring.of(form)[0] if q not in left)
            co_occurring.append(self.index.vectors[[self._row[q] for q in counted if q in self._row]])
        return enhanced(own, co_occurring, self.config.weight)
