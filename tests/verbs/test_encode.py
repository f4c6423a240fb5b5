import numpy as np

from crops_jax.encode import _Parts


def test_parts_of_a_killed_run_are_kept_for_the_same_key_only(tmp_path):
    first = _Parts(tmp_path / "parts", "model corpus 4")
    first.save(0, np.zeros((4, 2), np.float32))
    again = _Parts(tmp_path / "parts", "model corpus 4")
    assert again.has(0) and not again.has(1)
    again.save(1, np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(again.joined()[:, 0], [0, 0, 0, 0, 1, 1, 1])
    assert not _Parts(tmp_path / "parts", "model corpus 5").has(0)
