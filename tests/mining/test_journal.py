"""The journal of paid answers, when the machine goes down, and when several commands write to it."""

import json
import os
import threading
from dataclasses import replace
from fcntl import LOCK_EX, LOCK_UN, flock

import pytest

from crops_jax.errors import InputError
from crops_jax.mining.journal import Answer, Journal

ANSWER = Answer("k", "m", "text", None, "stop", 1, 2)


def test_an_answer_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Written out, then forced to the disk, then known."""
    path, synced = tmp_path / "j", []

    def fsync(number):
        synced.append((os.readlink(f"/proc/self/fd/{number}"), path.read_text(), dict(journal.answers)))

    with Journal(path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.add(ANSWER)
    ((file, text, known),) = synced
    assert file == str(path) and json.loads(text)["key"] == "k"
    assert known == {} and journal.answers == {"k": ANSWER}


def test_who_reads_takes_away_no_line_that_another_command_is_writing(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        for key in "abc":
            journal.add(replace(ANSWER, key=key))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with Journal(path) as journal:
        assert [*journal.answers] == ["a", "b"] and path.read_bytes() == whole[:-7]
        with path.open("ab") as other:
            other.write(whole[-7:])
        journal.add(replace(ANSWER, key="d"))
    assert path.read_bytes().startswith(whole)
    with Journal(path) as journal:
        assert [*journal.answers] == ["a", "b", "c", "d"]


def test_a_line_waits_for_that_of_another_command(tmp_path):
    with Journal(tmp_path / "j") as journal, (tmp_path / "j").open("ab") as other:
        flock(other, LOCK_EX)
        adding = threading.Thread(target=journal.add, args=(ANSWER,))
        adding.start()
        adding.join(0.2)
        assert adding.is_alive() and not journal.answers
        flock(other, LOCK_UN)
        adding.join()
    assert json.loads((tmp_path / "j").read_text())["key"] == "k"


def test_a_place_that_holds_no_journal_is_told(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file/j"):
        with pytest.raises(InputError, match=rf"{path}: is no file that a journal can be kept in"):
            Journal(path)
