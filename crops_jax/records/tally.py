"""What became of groups, in numbers that add up: those of parts, in any cut and order, are those of the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

REJECTS = ("unknown_item", "item_without_text", "query_without_text", "group_without_positive")
_KEPT = 1 << 16


@dataclass
class Distinct:
    """Counts distinct keys (`stable_hash.text_keys`) in bounded memory.

    Exact below `_KEPT` of them; above, the smallest tell how dense all are, with a standard error of 0.4 %.
    """

    smallest: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, keys: np.ndarray) -> None:
        """Takes keys, repeated or not."""
        self.smallest = np.unique(np.concatenate([self.smallest, keys]))[:_KEPT]

    @property
    def count(self) -> int:
        """How many there were."""
        n = len(self.smallest)
        return n if n < _KEPT else round((n - 1) * (2**63 / (int(self.smallest[-1]) + 1)))


@dataclass
class Tally:
    """Rejects by reason, distinct queries and documents, and the largest group."""

    rejects: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REJECTS, 0)))
    queries: Distinct = field(default_factory=Distinct)
    documents: Distinct = field(default_factory=Distinct)
    max_docs: int = 0

    def add(self, other: Tally) -> None:
        """Takes what another part counted."""
        self.rejects.update(other.rejects)
        self.queries.add(other.queries.smallest)
        self.documents.add(other.documents.smallest)
        self.max_docs = max(self.max_docs, other.max_docs)

    def counts(self) -> dict[str, Any]:
        """As the manifest has them."""
        return {
            "distinct_queries": self.queries.count,
            "distinct_documents": self.documents.count,
            "max_docs_per_query": self.max_docs,
            "rejects": dict(self.rejects),
        }
