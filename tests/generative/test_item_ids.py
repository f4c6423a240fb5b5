"""Ids of items: every item has its own, whatever its vector, and says of which vectors it is."""

from dataclasses import replace

import numpy as np
import pytest
from generators import CONFIG, generator_experiment, vectors, write_ids, write_vectors

from crops_jax.artifacts.manifest import read_manifest
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.item_ids import ItemIds, identity, learn_item_ids, read_item_ids
from crops_jax.generative.reading import GeneratorText
from crops_jax.runs.item_ids import ready_item_ids, run
from crops_jax.suggestions.config import RQKMeansConfig, RQVAEConfig
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

VAE = RQVAEConfig(levels=2, codes=4, width=4, hidden=(8,), steps=20, batch=16)


@pytest.mark.parametrize("config", [
    CONFIG.ids, pytest.param(RQKMeansConfig(codes=(4,), opq_parts=2, opq_codes=2), marks=pytest.mark.slow),
    pytest.param(VAE, marks=pytest.mark.slow),
])  # fmt: skip
def test_every_item_has_an_id_of_its_own_and_all_are_of_one_length(config):
    """So none is the beginning of another. Four items of one vector differ in the last code alone, by their number."""
    ids, quantiser, told = learn_item_ids(np.arange(40), vectors(), config)
    assert len({tuple(codes) for codes in ids.codes.tolist()}) == 40
    assert ids.codes.shape == (40, GeneratorConfig(ids=config).id_tokens) and len(ids.sizes) == ids.codes.shape[1]
    assert (ids.codes >= 0).all() and (ids.codes.max(0) < ids.sizes).all()
    same = ids.codes[[7, 30, 31, 32]]
    assert len(np.unique(same[:, :-1], axis=0)) == 1 and (np.diff(same[:, -1]) > 0).all()
    semantic = [tuple(codes) for codes in ids.codes[:, :-1].tolist()]
    groups = [semantic.count(one) for one in semantic]
    assert told["items"] == 40 and told["distinct_ids"] == len({*semantic})
    assert told["collisions"] == sum(n > 1 for n in groups) and told["largest_group"] == max(groups) == ids.sizes[-1]
    spread = ((vectors() - vectors().mean(0)) ** 2).sum(1).mean()
    error = ((vectors() - quantiser.reconstruct(ids.codes[:, :-1])) ** 2).sum(1).mean()
    assert told["relative_error"] == pytest.approx(error / spread, rel=1e-5)


def test_what_has_no_vector_or_is_no_item_is_refused():
    rows = vectors()
    for items, given, said in (
        (np.arange(39), rows, "39 items, 40 vectors"),
        (np.arange(0), rows[:0], "0 items"),
        (np.arange(40) - 1, rows, "1 negative ids, such as -1"),
        (np.zeros(40, np.int64), rows, "ids occur twice"),
        (np.arange(40), np.where(np.arange(40)[:, None] == 3, np.nan, rows), "not finite, the first is row 3"),
    ):
        with pytest.raises(InputError, match=said):
            learn_item_ids(items, given, CONFIG.ids)


def test_a_folder_holds_the_ids_and_knows_the_vectors_that_they_code(tmp_path):
    e = generator_experiment(tmp_path)
    folder = e.arm_folder("item_ids")
    ids, again = ready_item_ids(e), learn_item_ids(np.arange(40), vectors(), CONFIG.ids)[0]
    assert ids.sizes == again.sizes and (ids.codes == again.codes).all() and (ids.items == np.arange(40)).all()
    assert ids.rows_of([39, 40, -3, 0, -4, -9]).tolist() == [39, -1, -1, 0, 41, 40]
    assert ids.written_codes.tolist() == ids.codes[[7, 0], :-1].tolist(), (
        "as items of the same vectors, but for the last"
    )
    counts = read_manifest(folder)["counts"]
    assert counts["items"] == 40 and counts["last_codes"] == ids.sizes[-1] and len(counts["utilisation"]) == 2
    before = identity(folder)
    assert write_ids(e) == folder and identity(folder) == before
    write_vectors(e, vectors()[::-1])
    with pytest.raises(InputError, match=r"was made from another .*embeddings; make it again with .*pipeline"):
        ready_item_ids(e)
    (folder / "item_ids.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"item_ids\.safetensors"):
        read_item_ids(folder)
    with pytest.raises(InputError, match=r"another/train/run\.json: is missing"):
        run(replace(e, suggest=replace(CONFIG, encoder="another")))
    with pytest.raises(InputError, match="writes no item ids"):
        run(replace(e, suggest=None))


def test_tokens_of_ids_stand_behind_those_of_text_each_place_apart(tmp_path):
    """Sizes 3, 2, 4 behind V tokens of text: places begin at V, V + 3 and V + 5. A written document has no last one."""
    place = train_tokenizer(["a lamp"], 257, tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(TextConfig(tokenizer=str(place), append_eos=True))
    v, codes = tokenizer.vocab_size, np.array([[2, 0, 3], [0, 1, 0]], np.int32)
    ids = ItemIds(np.array([4, 9]), codes, (3, 2, 4), np.array([-7]), np.array([[1, 1]], np.int32))
    text = GeneratorText(tokenizer, ids, CONFIG)
    assert text.tokens.tolist() == [[v + 2, v + 3, v + 8], [v, v + 4, v + 5], [v + 1, v + 4, text.end]]
    assert text.length.tolist() == [3, 3, 2] and text.rows(text.tokens[1::-1]).tolist() == [1, 0]
    ends = text.sources(["", "a" * 99])
    assert ends.length.tolist() == [1, 8] and ends.ids[0, 0] == ends.ids[1, -1] == text.end
    small = replace(CONFIG, model=replace(CONFIG.model, vocab_size=v + 8))
    with pytest.raises(InputError, match=rf"suggest\.model\.vocab_size = {v + 8} to at least {v + 9}"):
        GeneratorText(tokenizer, ids, small)
    with pytest.raises(InputError, match=r"ids of 3 codes, suggest\.ids gives 2"):
        GeneratorText(tokenizer, ids, replace(CONFIG, ids=RQKMeansConfig(codes=(4,), opq_parts=0)))
    with pytest.raises(InputError, match="append_eos = False"):
        GeneratorText(Tokenizer(TextConfig(tokenizer=str(place))), ids, CONFIG)


def test_what_a_generator_cannot_be_is_said_at_once():
    with pytest.raises(InputError) as caught:
        GeneratorConfig(encoder="", label_weights=(0, 0), item_texts=-1, max_source_tokens=2_000)
    assert len(caught.value.problems) == 4
