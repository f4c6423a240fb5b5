"""What a writer learns from and reads: losers in turn, records and batches, tokens; all by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hand_logs import T0, candidate, feed, item, search, suggested, typed, write, write_day
from hand_logs import write_suggestions as suggestions

from crops_jax.artifacts.folders import write_folder
from crops_jax.batches.config import InputConfig
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.models.config import BartConfig
from crops_jax.stable_hash import hash_texts
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.batches import SuggestionBatches, batch_of
from crops_jax.suggestions.config import RWRConfig, SuggestMiningConfig
from crops_jax.suggestions.examples import Example, _in_turn, decode_example, encode_example, read_examples
from crops_jax.suggestions.mined_day import mine_suggestions
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.records import ExamplesReader, write_examples
from crops_jax.suggestions.writable import LeftOut, writable_examples
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

MODEL = BartConfig(
    vocab_size=300, width=8, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn=8,
    decoder_ffn=8, max_positions=32,
)  # fmt: skip
WRITER = WriterConfig(model=MODEL, losers=2, max_source_tokens=16, max_query_tokens=6, recent=2, shards=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token a byte, so that what is read can be counted."""
    place = train_tokenizer(["a"], 257, tmp_path_factory.mktemp("tokens") / "tokenizer.json")
    return Tokenizer(TextConfig(tokenizer=str(place), append_eos=True, max_query_tokens=8, max_doc_tokens=8))


def example(name="r", prefix="la", chosen="lamp", rejected=("lava", "last"), reference=(), **given):
    weight = np.array([0.5, 2.0][: len(rejected)], np.float32)
    whole = {"related": ["lamps"], "recent": ["desk", "led"]} | given
    return Example(name, prefix, chosen=chosen, rejected=[*rejected], weight=weight,
                   reference=np.array(reference, np.float32), **whole)  # fmt: skip


def test_a_mined_day_becomes_examples_and_each_kind_of_loser_has_its_turn(tmp_path):
    logs = tmp_path / "logs"
    write(logs / "items.parquet", "items", [item(0, "a")])
    searches = [search("s1", 1, "desk lamp", T0), search("s2", 1, "LED", T0 + 5), search("s3", 2, "lava", T0)]
    write_day(logs, "train", searches, [candidate("s1", 0)], [feed(1, 0, T0)])
    offered = [*suggested("a", ["lamp", "lava", "last", "lake", "lace"], 4, "lamp"), *suggested("b", ["lime"])]
    suggestions(logs, "train", [typed("a", 1, "La ", T0 + 9), typed("b", 2, "li", T0 + 9)], offered, [])
    mining = SuggestMiningConfig(engine=EngineConfig(memory_limit="500MB"))
    with write_folder(tmp_path / "mined", kind="mined_suggestions") as out:
        mine_suggestions(logs, out, mining)
    (found,) = read_examples(tmp_path / "mined", losers=4)
    assert (found.request_id, found.prefix, found.chosen) == ("a", "la", "lamp")
    assert found.recent == ["LED", "desk lamp"]
    levels = {"lava": "show", "last": "show", "lake": "show", "lace": "not_show"}
    kinds = [levels.get(query, "rand") for query in found.rejected]
    assert kinds == ["show", "not_show", "rand", "show"]
    shown = [query for query in found.rejected if levels.get(query) == "show"]
    assert shown == sorted(["lava", "last", "lake"], key=lambda q: hash_texts([f"a\n{q}"])[0])[:2] == ["lake", "lava"]
    # click e^1 against show 0.5 e^(1/3), not_show 0.2 e^1 and rand 0.
    assert found.weight[:3] == pytest.approx([1 / (np.e - 0.5 * np.exp(1 / 3)), 1 / (0.8 * np.e), 1 / np.e], rel=1e-6)
    (fewer,) = read_examples(tmp_path / "mined", losers=1)
    assert fewer.rejected == found.rejected[:1]
    # In many parts, of which one without searches or losers is not there.
    typing = [typed("a", 1, "La ", T0 + 9), *(typed(f"n{i}", None, f"{i}", T0 + 9) for i in range(20))]
    alone = [row for i in range(20) for row in suggested(f"n{i}", ["lamp"], 4, "lamp")]
    suggestions(logs, "train", typing, [*offered[:5], *alone], [])
    with write_folder(tmp_path / "parts", kind="mined_suggestions") as out:
        mine_suggestions(logs, out, replace(mining, part_rows=1))
    assert len([*(tmp_path / "parts/taken").iterdir()]) > len([*(tmp_path / "parts/recent").iterdir()]) == 1
    read = {one.request_id: one for one in read_examples(tmp_path / "parts", losers=4)}
    assert len(read) == 21 and read["a"].recent == found.recent and read["n0"].recent == []
    next((tmp_path / "parts/recent").iterdir()).unlink()
    with pytest.raises(InputError, match=r"recent/part-"):
        list(read_examples(tmp_path / "parts", losers=4))


def test_turns_go_by_level_and_keep_the_order_within_one():
    rejected = [("rand", "z", 0.1), ("show", "b", 0.2), ("show", "a", 0.3), ("rand", "y", 0.4)]
    assert [query for query, _ in _in_turn(rejected)] == ["b", "z", "a", "y"]


def test_records_give_back_what_was_written_in_any_order(tmp_path):
    written = [example(f"r{n}", rejected=("lava",) * (n % 3), reference=[-n] * (1 + n % 3)) for n in range(7)]
    with write_folder(tmp_path / "records", kind="records") as out:
        counts = write_examples(written, out, shards=2, seed=0)
    assert counts == {"suggestions": 7, "shard_lengths": [4, 3], "without_losers": 3, "pairs": 6, "referenced": 7} or (
        counts["shard_lengths"] == [3, 4]
    )
    reader = ExamplesReader(tmp_path / "records")
    read = {e.request_id: e for e in reader.read(range(len(reader)))}
    for one in written:
        assert repr(read[one.request_id]) == repr(one)
    again = reader.read([6, 0, 6])
    assert again[0].request_id == again[2].request_id != again[1].request_id
    none = write_folder(tmp_path / "n", kind="records")
    with pytest.raises(InputError, match="nobody took a suggestion"), none as out:
        write_examples([], out, 2, 0)


def test_a_damaged_record_names_its_place():
    assert repr(decode_example(encode_example(example()), "here")) == repr(example())
    with pytest.raises(InputError, match="here: is not a record of suggestions"):
        decode_example(b"\xff", "here")
    with pytest.raises(InputError, match="2 rejected queries, 2 weights, 1 values"):
        decode_example(encode_example(example(reference=[-1.0])), "here")


def test_a_source_is_prefix_related_and_recent_with_an_end_after_each(tokenizer):
    text, end = WriterText(tokenizer, WRITER), tokenizer.eos_id
    ids, length = text.sources(["la", ""], [["x"], []], [["b", "cd", "e"], []])

    def byte(letters):
        return tokenizer.encode([letters], 20).ids[0][: len(letters)].tolist()

    assert length.tolist() == [11, 2]
    assert ids[0, :11].tolist() == [*byte("la"), end, *byte("x"), end, end, *byte("b"), end, *byte("cd"), end]
    assert ids[1, :2].tolist() == [end, end]


def test_a_long_prefix_keeps_its_end_and_what_does_not_fit_is_left_out(tokenizer):
    text, end = WriterText(tokenizer, WRITER), tokenizer.eos_id
    ids, length = text.sources(["abcdefghijklmnopqrstuvwxyz", "abcdefgh"], [["x"], ["1234567", "y"]], [[], []])
    kept = tokenizer.encode(["lmnopqrstuvwxyz"], 20).ids[0][:15].tolist()
    assert length.tolist() == [16, 9] and ids[0].tolist() == [*kept, end]


def test_a_text_that_cannot_fit_widens_nothing(tokenizer, monkeypatch):
    """One letter, its end and that of no related queries are 3 of 16 tokens: 12 and their end fit behind them."""
    text, wide, encode = WriterText(tokenizer, WRITER), [], tokenizer.encode
    recent = [["b" * 1_999, "c"], ["b" * 13, "c"], ["b" * 12, "c"], ["d"]]
    monkeypatch.setattr(tokenizer, "encode", lambda texts, most: wide.append(most) or encode(texts, most))
    ids, length = text.sources(["a"] * 4, [[]] * 4, recent)
    assert length.tolist() == [3, 3, 16, 5] and max(wide) <= WRITER.max_source_tokens
    assert ids[0].tolist() == ids[1].tolist() == text.sources(["a"], [[]], [[]]).ids[0].tolist()
    wide.clear()
    text.sources(["a"], [["bcd"]], [[]])
    assert wide == [5, 13], "and short ones need no more than they have"


def test_a_batch_holds_what_was_taken_first_and_marks_missing_losers(tokenizer):
    text = WriterText(tokenizer, replace(WRITER, start="sft", rwr=RWRConfig()))
    batch = batch_of([example(reference=[-1, -2, -3]), example(rejected=("lava",), reference=[-4, -5])], text)
    assert batch.sizes == (2, 6) and batch.answers.length.tolist() == [[5, 5, 5], [5, 5, 0]]
    assert batch.weight.tolist() == [[0.5, 2.0], [0.5, 0.0]]
    assert batch.reference.tolist() == [[-1, -2, -3], [-4, -5, 0]]
    assert (batch.before[:, :, 0] == tokenizer.eos_id).all()
    assert (batch.before[:, :, 1:] == batch.answers.ids[:, :, :-1]).all()
    alone = batch_of([example()], WriterText(tokenizer, WRITER))
    assert alone.answers.length.tolist() == [[5]] and alone.weight.shape == (1, 0)


def test_what_a_writer_cannot_write_is_left_out_and_counted(tokenizer):
    """Five letters and the token that ends them fill the six slots; "lantern" would be taught as "lante"."""
    text, left_out = WriterText(tokenizer, WRITER), LeftOut()
    given = [example("a", rejected=("lanterns", "lava")), example("b", chosen="lantern"), example("c", chosen="lamps"),
             example("d", chosen="lava", rejected=("lava", "last"))]  # fmt: skip
    found = list(writable_examples(given, text, left_out))
    assert [(e.request_id, e.rejected, e.weight.tolist()) for e in found] == [
        ("a", ["lava"], [2.0]), ("c", ["lava", "last"], [0.5, 2.0]), ("d", ["last"], [2.0])]  # fmt: skip
    assert left_out == LeftOut(answers_too_long=1, losers_too_long=1, losers_of_equal_tokens=1)
    with pytest.raises(InputError, match=r"max_query_tokens: 6: each of the 1 answers"):
        list(writable_examples([given[1]], text, LeftOut()))


def test_batches_are_the_same_from_any_number_of_readers_and_from_a_position(tokenizer, tmp_path):
    with write_folder(tmp_path / "records", kind="records") as out:
        write_examples([example(f"r{n}", chosen=f"q{n}") for n in range(11)], out, 2, 0)
    reader, text = ExamplesReader(tmp_path / "records"), WriterText(tokenizer, WRITER)
    config = InputConfig(batch_queries=4, docs_per_query=1, shards=2)
    whole = SuggestionBatches(reader, text, config)
    parts = [SuggestionBatches(reader, text, config, [shard]) for shard in range(2)]
    position, places, seen = whole.start(), [p.start() for p in parts], []
    for _ in range(6):
        loaded = whole.load(position)
        halves = [part.load(place) for part, place in zip(parts, places, strict=True)]
        assert np.array_equal(loaded.batch.source.ids, np.concatenate([h.batch.source.ids for h in halves]))
        assert np.array_equal(loaded.batch.answers.ids, np.concatenate([h.batch.answers.ids for h in halves]))
        position, places = loaded.position, [h.position for h in halves]
        seen += loaded.group_numbers.tolist()
    # Place p of the endless order is read by shard p mod 2: after 11 places every example was read once.
    assert sorted(set(seen)) == list(range(11)) and position.tolist() == [[12], [12]]
    with pytest.raises(InputError, match="no log-probabilities of the reference"):
        SuggestionBatches(reader, WriterText(tokenizer, replace(WRITER, start="sft", rwr=RWRConfig())), config)


def test_a_writer_s_config_says_all_that_is_wrong():
    with pytest.raises(InputError) as caught:
        WriterConfig(model=MODEL, rwr=RWRConfig(), recent=-1, max_source_tokens=64)
    assert len(caught.value.problems) == 3
