"""The journal of paid answers, when the machine goes down."""

import json
import os

from crops_jax.mining.journal import Answer, Journal


def test_an_answer_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Written out, then forced to the disk, then known."""
    answer = Answer("k", "m", "text", None, "stop", 1, 2)
    path, synced = tmp_path / "j", []

    def fsync(number):
        synced.append((os.readlink(f"/proc/self/fd/{number}"), path.read_text(), dict(journal.answers)))

    with Journal(path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.add(answer)
    ((file, text, known),) = synced
    assert file == str(path) and json.loads(text)["key"] == "k"
    assert known == {} and journal.answers == {"k": answer}
