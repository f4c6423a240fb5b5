"""How much of their text two documents have in common, whatever language they are in."""

from __future__ import annotations

from crops_jax.normal_text import normal_form

_LONG = 4  # characters


def shingles(*texts: str) -> frozenset[str]:
    """All sequences of four characters in the normal forms of the texts; a shorter text is one sequence."""
    found: set[str] = set()
    for form in map(normal_form, texts):
        found.update(form[i : i + _LONG] for i in range(max(1, len(form) - _LONG + 1)))
    return frozenset(found - {""})


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of the sequences of both that each has (Jaccard), from 0 to 1.

    >>> similarity(shingles("abcdef"), shingles("abcdeg"))
    0.5
    """
    return len(a & b) / len(a | b) if a or b else 1.0
