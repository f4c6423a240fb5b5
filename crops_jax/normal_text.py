"""Which characters are blanks, and when two texts are one: the same rule in Python and in the engine's SQL.

A *blank* shows nothing and separates words: white space of every kind, U+3000, U+00A0, the zero-width space. An
*invisible* character shows nothing and separates nothing: a soft hyphen, a joiner, a direction mark. A text of only
these is no text. Two texts are one when their `normal_form` is the same: they differ at most in case, in blanks, in
invisible characters, and in forms that Unicode calls compatible (full-width letters, ligatures, composed and separate
accents).
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import pyarrow as pa

# What Python calls space, and three marks that once were space in Unicode or are called so (180E, 200B, FEFF).
BLANKS = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
)
# Unicode's Default_Ignorable_Code_Point without the three above.
_INVISIBLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180D),
    (0x180F, 0x180F), (0x200C, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
VISIBLE = f"[^{BLANKS}{''.join(f'{chr(a)}-{chr(b)}' for a, b in _INVISIBLE)}]"
"""A regular expression of one character that is text, for Python's `re` and the engine's RE2."""

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HIRAGANA, KATAKANA = "\u3041-\u3096\u309d-\u309f", "\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff"  # letters alone
UNSPACED = f"\u3040-\u30ff{HAN}"
"""Letters that are written without spaces between words, for a class of a regular expression."""

_VISIBLE = re.compile(VISIBLE)
_PLAIN = {ord(c): " " for c in BLANKS} | dict.fromkeys(c for a, b in _INVISIBLE for c in range(a, b + 1))


def has_text(text: str) -> bool:
    r"""Whether anything in the text is neither a blank nor invisible.

    >>> has_text("\u3000\u200b"), has_text("\u3000苹果")
    (False, True)
    """
    return _VISIBLE.search(text) is not None


def strip_blanks(text: str) -> str:
    r"""The text without the blanks around it.

    >>> strip_blanks("\u3000苹果 手机\u00a0")
    '苹果 手机'
    """
    return text.strip(BLANKS)


@cache  # made where words are looked for, not at every start: it takes some 30 ms
def marks() -> str:
    r"""Vowel signs, tone marks and accents behind a letter, for a class of a regular expression: \w has none of them.

    None lies above 0x1FFFF but variation selectors, which are invisible.
    """
    return "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M")


def normal_form(text: str) -> str:
    r"""What texts that are one have in common: Unicode's NFKC_Casefold, and runs of blanks as one space.

    It knows no language: "I" becomes "i" in Turkish too, and the Turkish dotless i is a letter of its own.

    >>> normal_form(" iPhone\u3000 CASE"), normal_form("ｉＰｈｏｎｅ"), normal_form("Straße") == normal_form("STRASSE")
    ('iphone case', 'iphone', True)
    """
    if text.isascii():
        return " ".join(text.lower().split())
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN)).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())


def normal_forms(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The normal form of each text of an Arrow column, null where it is null."""
    coded = pa.chunked_array(texts).combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    coded = coded.dictionary_encode()
    forms = pa.array([normal_form(text) for text in coded.dictionary.to_pylist()], pa.string())
    return forms.take(coded.indices)
