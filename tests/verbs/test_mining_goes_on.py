"""`mine` after a kill: what was finished is kept until all is in its place, and nothing of it is out of date."""

import errno
from pathlib import Path

import pytest

from crops_jax import mine
from crops_jax.artifacts import folders


def full(*args, **kwargs):
    """A disk on which there is no room."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("made", [mine.run, mine.run_testsets])
def test_what_was_finished_stays_until_the_folder_is_in_its_place(own_logs, made, monkeypatch):
    found = []
    for step in ("seal", "_replace"):
        with monkeypatch.context() as patch:
            patch.setattr(folders, step, full)
            with pytest.raises(OSError, match="No space left"):
                made(own_logs)
        (work,) = Path(own_logs.workdir).glob("*.work")
        found.append({path: path.stat().st_ino for path in work.rglob("part-*")})
    assert found[0] == found[1] and len(found[0]) > 3
    made(own_logs)
    assert not work.exists()
