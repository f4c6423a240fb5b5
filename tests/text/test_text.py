import json
import subprocess
import sys

import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.text.hashed_ids import IdConfig, IdHasher, hashed_row, terms
from crops_jax.text.tokenizer import END_OF_TEXT, TextConfig, Tokenizer, document_text, train_tokenizer

TEXTS = ["cordless drill with two batteries", "dewalt drill bits\nset of 20", "电动 螺丝刀", "don't  stop at 18v", ""]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_tokenizer(TEXTS * 5, 320, tmp_path_factory.mktemp("bpe") / "tokenizer.json")


def eos_config(path, **changes):
    return TextConfig(tokenizer=str(path), append_eos=True, **changes)


def test_document_text_joins_non_empty_fields_in_order():
    assert document_text("title", " ", "a|b", None) == "title\na b"
    assert document_text("t|t", "c", "k", "q|r", order=("click_query", "ocr_cover")) == "q r\nt|t"


def test_document_text_knows_every_blank():
    assert document_text("\u3000drill\u00a0", "\u200b", "\u3000|\u2003", "\u00ad") == "drill"
    assert document_text("\ufeff", "\u3164", None, "") == ""
    assert document_text("❤\ufe0f", None, None, None) == "❤\ufe0f"  # an invisible character is part of the text


def test_long_and_short_texts_end_in_exactly_one_eos_whatever_the_file_says_of_padding(bpe, tmp_path):
    """The same rows from files that ask for left padding, right padding, a cut and an appended EOS of their own."""
    plain = Tokenizer(eos_config(bpe, max_doc_tokens=8)).encode_documents([*TEXTS, "x" * 10_000])
    assert plain.length.tolist() == [6, 8, 3, 8, 1, 8]
    assert (plain.ids == 0).sum(axis=1).tolist() == [3, 1, 6, 1, 8, 1]  # <|endoftext|> is id 0, and padding too
    assert (plain.ids[range(6), plain.length - 1] == 0).all()
    for direction in ("Left", "Right"):
        spec = json.loads(bpe.read_text())
        spec["padding"] = {"strategy": {"Fixed": 12}, "direction": direction, "pad_to_multiple_of": None, "pad_id": 0,
                           "pad_type_id": 0, "pad_token": END_OF_TEXT}  # fmt: skip
        spec["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": direction}
        eos = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
        spec["post_processor"] = {
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, eos], "pair": [],
            "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
        }  # fmt: skip
        other = tmp_path / "tokenizer.json"
        other.write_text(json.dumps(spec))
        rows = Tokenizer(eos_config(tmp_path, max_doc_tokens=8)).encode_documents([*TEXTS, "x" * 10_000])
        np.testing.assert_array_equal(rows.ids, plain.ids)
        np.testing.assert_array_equal(rows.length, plain.length)


def test_a_text_cannot_end_its_own_row(bpe):
    rows = Tokenizer(eos_config(bpe)).encode_documents([f"drill {END_OF_TEXT} drill"])
    assert rows.ids[0, : rows.length[0]].tolist().count(0) == 1


def test_eos_is_pinned_by_name_and_id(bpe):
    Tokenizer(eos_config(bpe, eos_id=0))
    with pytest.raises(InputError, match="id 0, but eos_id says 151643"):
        Tokenizer(eos_config(bpe, eos_id=151643))
    with pytest.raises(InputError, match="has no token '<eos>'"):
        Tokenizer(eos_config(bpe, eos_token="<eos>"))


def test_bert_rows_keep_cls_and_sep_when_cut():
    rows = Tokenizer(TextConfig()).encode(["a drill", "x " * 10_000, "x" * 10_000, "[SEP]"], 8)
    assert rows.ids[0].tolist() == [101, 1037, 12913, 102, 0, 0, 0, 0]
    assert rows.ids[1].tolist() == [101] + [1060] * 6 + [102]
    assert rows.length.tolist() == [4, 8, 3, 5]  # a word of 10,000 letters is one [UNK]; a typed [SEP] is no SEP


def test_alone_or_in_a_batch_the_row_is_the_same(bpe):
    tokenizer = Tokenizer(eos_config(bpe, max_query_tokens=12))
    together = tokenizer.encode_queries(TEXTS)
    for row, single in enumerate(TEXTS):
        np.testing.assert_array_equal(tokenizer.encode_queries([single]).ids[0], together.ids[row])


def test_training_twice_in_two_processes_gives_the_same_bytes(bpe, tmp_path):
    code = (
        "import sys; from pathlib import Path; from crops_jax.text.tokenizer import train_tokenizer\n"
        f"train_tokenizer({TEXTS!r} * 5, 320, Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.json")], check=True)
    assert (tmp_path / "t.json").read_bytes() == bpe.read_bytes()
    assert len(Tokenizer(eos_config(bpe)).fingerprint()) == 64


def test_a_vocabulary_of_words_holds_the_most_frequent_in_berts_frame(tmp_path):
    texts = ["10 11 12", "[SEP] 10 x[y] zz", "b a", "a b 10"]
    files = [train_tokenizer(some, 8, tmp_path / f"{i}.json", "words") for i, some in enumerate((texts, texts[::-1]))]
    assert files[0].read_bytes() == files[1].read_bytes()
    tokenizer = Tokenizer(TextConfig(str(files[0])))
    rows = tokenizer.encode(["10 11  a", "[SEP] b", "101", ""], 7)
    pad, unknown, cls, sep, ten, left, right, a = range(8)  # of a and b, both twice, a is the first
    assert rows.ids.tolist() == [
        [cls, ten, unknown, a, sep, pad, pad],
        [cls, left, unknown, right, unknown, sep, pad],  # no text spells the end of a row
        [cls, unknown, sep, pad, pad, pad, pad],
        [cls, sep, pad, pad, pad, pad, pad],
    ]
    assert (rows.length.tolist(), tokenizer.pad_id, tokenizer.vocab_size) == ([5, 6, 3, 2], pad, 8)
    with pytest.raises(InputError, match=r"vocab_size 4 cannot hold \[PAD\], \[UNK\], \[CLS\], \[SEP\] and a word"):
        train_tokenizer(texts, 4, tmp_path / "none.json", "words")


def test_byte_level_rows_decode_to_the_text(bpe):
    tokenizer = Tokenizer(eos_config(bpe))
    rows = tokenizer.encode_documents(TEXTS)
    library = tokenizer._load()
    decoded = [library.decode(r[: n - 1].tolist()) for r, n in zip(rows.ids, rows.length, strict=True)]
    assert decoded == TEXTS
    assert rows.ids.max() < tokenizer.vocab_size


def test_transformers_reads_the_trained_file_and_gives_the_same_ids(bpe):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(bpe))
    rows = Tokenizer(eos_config(bpe)).encode_documents(TEXTS)
    for row, single in enumerate(TEXTS):
        assert rows.ids[row, : rows.length[row] - 1].tolist() == theirs(single)["input_ids"]


def test_an_unknown_tokenizer_is_one_error_that_says_what_was_tried(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="not of the form of a hub id"):
        Tokenizer(TextConfig(tokenizer="runs/demo/tokenizer.json"))
    with pytest.raises(InputError, match=r"no such file; python -m crops_jax\.write_records"):
        Tokenizer(TextConfig(tokenizer=str(tmp_path / "tokenizer/tokenizer.json")))
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        Tokenizer(TextConfig(tokenizer=str(tmp_path)))
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError) as caught:
        Tokenizer(TextConfig(tokenizer="Qwen/Qwen2.5-0.5B"))
    assert len(caught.value.problems) == 4 and "no route to the hub" in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not a tokenizer\.json"):
        Tokenizer(TextConfig(tokenizer=str(tmp_path)))


def test_text_config_lists_all_problems():
    with pytest.raises(InputError) as caught:
        TextConfig(max_query_tokens=2, max_doc_tokens=0, field_order=("title",))
    assert len(caught.value.problems) == 3


def test_terms_are_whole_words_of_the_normal_form():
    assert terms("हिन्दी गाना") == ["हिन्दी", "गाना"] and terms("深度x学 a_b") == ["深", "度", "x", "学", "a", "b"]
    assert terms("cafe\u0301 ＦＵＬＬ pho\u00adne") == ["café", "full", "phone"]
    assert terms("スマホ・ケース 赤・青 らーめん アイㇴ") == [
        "スマホ",
        "ケース",
        "赤",
        "青",
        "ら",
        "め",
        "ん",
        "アイㇴ",
    ]
    assert terms("電動ﾄﾞﾗｲﾊﾞｰを使う") == ["電", "動", "ドライバー", "を", "使", "う"]


def test_hashed_ids_leave_row_0_to_the_unknown():
    hasher = IdHasher(IdConfig(query_bits=4, video_bits=4, keyword_bits=4, term_bits=4, max_doc_terms=3))
    items = list(range(2000))
    docs = hasher.encode_documents(items, [f"k{i}|k{i + 1}" for i in items], [f"word{i} drill" for i in items])
    assert docs.ids.min() == 1 and docs.ids.max() == 15  # 2^4 rows, 15 of them for values
    assert docs.bags[:, :, :2].min() == 1 and docs.bags.max() == 15
    assert (docs.bags[:, :, 2] == 0).all()
    written = hasher.encode_documents([-7, 7], ["tool| Drill ", "tool|drill"], ["Drill bit", "drill bit"])
    assert written.ids[0, 0] == 0 and written.ids[1, 0] > 0  # a language model's document has no video id ...
    np.testing.assert_array_equal(written.bags[0], written.bags[1])  # ... but the keywords and terms of any other
    forms = hasher.encode_documents([7, 7], ["LED café|x", "ＬＥＤ  cafe\u0301|x"], ["a", "a"])
    np.testing.assert_array_equal(forms.bags[0], forms.bags[1])
    empty = hasher.encode_documents([-1], [""], [""])
    assert not empty.ids.any() and not empty.bags.any()


def test_hashed_query_rows_ignore_case_and_spacing_and_are_cut():
    hasher = IdHasher(IdConfig(max_query_terms=2))
    rows = hasher.encode_queries(["Cordless  DRILL", "cordless drill", "x " * 10_000, "a b c", " "])
    np.testing.assert_array_equal(rows.ids[0], rows.ids[1])
    assert (rows.bags[2, 0] > 0).tolist() == [True, False]  # each term once
    assert (rows.bags[3, 0] > 0).all() and rows.bags.shape == (5, 1, 2)
    assert rows.ids[4, 0] == 0 and not rows.bags[4].any()


def test_hashed_queries_that_are_one_have_one_row():
    rows = IdHasher(IdConfig()).encode_queries(
        ["iPhone\u3000Case", "ｉｐｈｏｎｅ case\u00a0", "iphone case", "iphonecase", "\u200b"]
    )
    assert len(set(rows.ids[:3, 0].tolist())) == 1 and rows.ids[3, 0] != rows.ids[2, 0] and rows.ids[4, 0] == 0
    bags = IdHasher(IdConfig()).encode_documents([1], ["a|\u3000|\u00a0b\u3000"], ["t"]).bags[0, 0]
    assert (bags != 0).sum() == 2


def test_hashed_rows_are_the_same_in_another_process():
    code = "from crops_jax.text.hashed_ids import hashed_row; print(hashed_row('video', '1938937936', 18))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(there.stdout) == hashed_row("video", "1938937936", 18) == 13951  # trained tables depend on it
