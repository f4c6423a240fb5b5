"""One rule of blanks and of equal texts, over every character that there is, in Python and in the engine's SQL."""

import sys

import duckdb
import pyarrow as pa
import pytest

from crops_jax.normal_text import BLANKS, VISIBLE, has_text, normal_form, normal_forms, strip_blanks

CHARACTERS = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("苹果\u3000手机", "苹果 手机"),
        ("苹果\u00a0手机", "苹果\u2003 手机\u3000"),
        ("苹果\u200b手机", "\ufeff苹果 \u200b手机"),
        ("iPhone Case", " iphone \t case\n"),
        ("ｉＰｈｏｎｅ　ｃａｓｅ", "iphone case"),  # full-width letters, an ideographic space
        ("ΟΔΟΣ", "οδος"),  # the sigma at a word's end has a form of its own
        ("οδός", "ΟΔΌΣ"),
        ("Straße", "STRASSE"),
        ("ﬁlm", "FILM"),
        ("café", "cafe\u0301"),
        ("trans\u00adformer", "transformer"),
        ("❤\ufe0f", "❤"),
        ("İstanbul", "i̇stanbul"),
    ],
)
def test_texts_that_are_one(a, b):
    assert normal_form(a) == normal_form(b)


@pytest.mark.parametrize(("a", "b"), [("iphonecase", "iphone case"), ("ılık", "ilik"), ("cafe", "café"), ("a", "")])
def test_texts_that_are_not(a, b):
    assert normal_form(a) != normal_form(b)


@pytest.mark.slow
def test_every_character_has_a_stable_form_that_case_does_not_change():
    assert [c for c in CHARACTERS if normal_form(normal_form(c)) != normal_form(c)] == []
    # The dotless i alone: its upper case is the letter I, whose lower case has a dot everywhere but in Turkish.
    assert [c for c in CHARACTERS if len({normal_form(c), normal_form(c.upper()), normal_form(c.lower())}) > 1] == ["ı"]


def test_blanks_are_pythons_and_three_more():
    assert set(BLANKS) == {c for c in CHARACTERS if c.isspace()} | {"\u180e", "\u200b", "\ufeff"}
    assert all(normal_form(f"a{c}b") == "a b" and strip_blanks(c) == "" for c in BLANKS)
    assert [c for c in CHARACTERS if has_text(c) != (normal_form(c) != "")] == []


def test_sql_and_python_agree_on_every_character():
    table = pa.table({"c": CHARACTERS, "text": [has_text(c) for c in CHARACTERS]})
    with duckdb.connect() as connection:
        connection.register("t", table)
        found = connection.execute("select count(*) from t where regexp_matches(c, ?) <> text", [VISIBLE]).fetchone()
    assert found == (0,)
    assert not has_text("\u3000\u200b\u00ad\u200d") and has_text("\u3000a")


def test_forms_of_a_column():
    assert normal_forms(pa.chunked_array([["A", None], ["a "]])).to_pylist() == ["a", None, "a"]
