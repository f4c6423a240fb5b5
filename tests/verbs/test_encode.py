from pathlib import Path

import numpy as np
import pytest

from crops_jax.encode import _Parts


def test_parts_of_a_killed_run_are_kept_for_the_same_key_only(tmp_path):
    first = _Parts(tmp_path / "parts", "model corpus 4")
    first.save(0, np.zeros((4, 2), np.float32))
    again = _Parts(tmp_path / "parts", "model corpus 4")
    assert again.has(0) and not again.has(1)
    again.save(1, np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(again.joined()[:, 0], [0, 0, 0, 0, 1, 1, 1])
    assert not _Parts(tmp_path / "parts", "model corpus 5").has(0)


def test_a_part_that_was_being_written_when_the_run_was_killed_is_none(tmp_path, monkeypatch):
    first = _Parts(tmp_path / "parts", "model corpus 4")
    first.save(0, np.zeros((4, 2), np.float32))

    def killed(file, vectors):
        Path(file).write_bytes(vectors.tobytes()[:5])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", killed)
        first.save(1, np.ones((3, 2), np.float32))
    again = _Parts(tmp_path / "parts", "model corpus 4")
    assert again.has(0) and not again.has(1)
    assert len(again.joined()) == 4
    again.save(1, np.ones((3, 2), np.float32))
    assert len(again.joined()) == 7
