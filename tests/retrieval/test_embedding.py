"""How texts become batches of a few fixed shapes, and their vectors come back in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crops_jax.batch import IdFeatures, Tokens
from crops_jax.errors import InputError
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.retrieval import embedding
from crops_jax.retrieval.config import EncodeConfig
from crops_jax.retrieval.embedding import encode_rows

CONFIG = EncodeConfig(batch=8, buckets=(3, 6))


@pytest.fixture
def encoded(monkeypatch):
    """(tower, shape) of every call; the vector of a row is its length and its first id."""
    calls = []

    def encode(model, tower, rows):
        calls.append((tower, rows.ids.shape))
        values = rows.length if isinstance(rows, Tokens) else rows.bags[:, 0, 0]
        return jnp.stack([values, rows.ids[:, 0]], axis=1).astype(jnp.float32)

    monkeypatch.setattr(embedding, "_encode", encode)
    return calls


def run(rows, tower="document", config=CONFIG):
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        return encode_rows(None, tower, rows, config, mesh)


def test_a_batch_takes_the_smallest_shape_that_holds_its_longest_text(encoded):
    length = np.array([9, 1, 4, 2, 3, 3, 6, 2, 3, 1, 5, 6, 4, 2, 4, 5, 7, 0, 4, 4], np.int32)
    rows = Tokens(np.arange(20 * 10, dtype=np.int32).reshape(20, 10), length)
    found = run(rows)
    # Rising: eight of up to 3, eight of up to 5, the rest of up to 9, of which a whole batch is made.
    assert [shape for _, shape in encoded] == [(8, 3), (8, 6), (8, 10)]
    np.testing.assert_array_equal(found, np.stack([length, 10 * np.arange(20)], axis=1))
    assert found.dtype == np.float32 and {tower for tower, _ in encoded} == {"document"}
    encoded.clear()
    run(rows, "query", EncodeConfig(batch=16, buckets=()))
    assert encoded == [("query", (16, 10))] * 2


def test_hashed_ids_have_one_shape(encoded):
    ids = np.arange(11, dtype=np.int32)[:, None]
    found = run(IdFeatures(ids, ids[:, :, None] + 1))
    assert [shape for _, shape in encoded] == [(8, 1)] * 2
    np.testing.assert_array_equal(found, np.concatenate([ids + 1, ids], axis=1))


def test_what_cannot_be_encoded_is_said(encoded, monkeypatch):
    rows = Tokens(np.ones((9, 4), np.int32), np.ones(9, np.int32))
    with pytest.raises(InputError, match=r"encode\.batch = 12 does not divide over 8 devices"):
        run(rows, config=EncodeConfig(batch=12))
    with pytest.raises(InputError, match="nothing to encode"):
        run(Tokens(rows.ids[:0], rows.length[:0]))
    monkeypatch.setattr(embedding, "_encode", lambda *_: jnp.full((8, 2), jnp.nan))
    with pytest.raises(InputError, match="9 embeddings are not finite, the first is row 0"):
        run(rows)
