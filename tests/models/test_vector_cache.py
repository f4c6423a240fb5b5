"""Vectors on disk: what was added is found, by whoever looks, and damage is seen."""

import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.models.vector_cache import VectorCache


def _rows(count, seed=0, width=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << 63, count).astype(np.uint64) * 2 + 1, rng.standard_normal((count, width), np.float32)


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_was_added_in_many_pieces_is_found_in_any_order(on_disk, tmp_path):
    cache, (keys, vectors) = VectorCache(tmp_path if on_disk else None), _rows(500)
    for start, end in ((0, 300), (300, 310), (310, 311), (311, 311), (311, 350), (350, 500)):
        assert cache.missing(keys[start:]).all()
        cache.add(keys[start:end], vectors[start:end])
    assert len(cache._runs) < 4
    order = np.random.default_rng(1).integers(0, 500, 900)
    for held in (cache, VectorCache(tmp_path)) if on_disk else (cache,):
        np.testing.assert_array_equal(held.get(keys[order]), vectors[order])
        np.testing.assert_array_equal(held.missing(np.append(keys[:3], np.uint64(2))), [False, False, False, True])
    assert cache.get(keys[:0]).shape[0] == 0


def test_one_process_sees_what_another_one_added_when_it_looks(tmp_path):
    first, second, (keys, vectors) = VectorCache(tmp_path), VectorCache(tmp_path), _rows(9)
    second.add(keys[:4], vectors[:4])
    first.add(keys[4:], vectors[4:])
    assert first.missing(keys[:4]).all()
    first.look()
    np.testing.assert_array_equal(first.get(keys), vectors)


def test_half_a_segment_is_none_and_a_flipped_bit_is_told(tmp_path):
    cache, (keys, vectors) = VectorCache(tmp_path), _rows(9)
    cache.add(keys, vectors)
    (segment,) = tmp_path.glob("*.npy")
    whole = segment.read_bytes()
    (tmp_path / ".half.npy").write_bytes(whole[:200])
    assert not VectorCache(tmp_path).missing(keys).any()
    for bit in (len(whole) - 1, len(whole) - 9 * 24 + 9):  # in the last vector, in the first checksum
        segment.write_bytes(whole[:bit] + bytes([whole[bit] ^ 4]) + whole[bit + 1 :])
        with pytest.raises(InputError, match=r"a checksum differs\); remove it and run"):
            VectorCache(tmp_path).get(keys)
    segment.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=rf"{segment.name}: is damaged"):
        VectorCache(tmp_path)
