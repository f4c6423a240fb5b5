"""Folders of parts: each holds whole queries, nothing depends on their number, and a killed run keeps what is done."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from hand_logs import T0, Always, candidate, feed, item, search, write, write_day
from whole_reading import CONFIG, everything, rows

from crops_jax.artifacts.folders import kept_for, made_from, write_folder
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.mining.train_day import mine
from crops_jax.records.candidates import read_groups
from crops_jax.text.tokenizer import document_text, document_texts

SMALL = dataclasses.replace(CONFIG, part_rows=20)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Forty users who reword one of thirty queries, click, and watch: two days of it."""
    logs, rng = tmp_path_factory.mktemp("logs"), np.random.default_rng(0)
    write(logs / "items.parquet", "items", [item(i, f"q{i} text") for i in range(50)])
    for day, start in (("train", T0), ("test", T0 + 2 * 86_400_000)):
        searches, candidates, watched = [], [], []
        for user in range(40):
            for again in range(2):
                name, query = f"{day}{user}_{again}", f"q{rng.integers(30)}"
                searches.append(search(name, user, query, start + 1_000 * again))
                shown = rng.choice(50, 4, replace=False).tolist()
                candidates += [candidate(name, i, position=p + 1, clicked=p < 2) for p, i in enumerate(shown)]
            watched += [feed(user, int(rng.integers(50)), start + int(rng.integers(10_000))) for _ in range(3)]
        write_day(logs, day, searches, candidates, watched)
    return logs


class Counting(Always):
    """Counts its calls, and is killed in the one that `last` names."""

    def __init__(self, last=None):
        super().__init__()
        self.calls, self.last = 0, last

    def scores(self, queries, texts):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return super().scores(queries, texts)


@pytest.mark.slow
def test_rows_are_the_same_in_one_part_and_in_many(logs):
    one = everything(logs, CONFIG, Always)
    assert [p.name for p in (logs / "mined/candidates.parquet").iterdir()] == ["part-0.parquet"]
    many = everything(logs, SMALL, Always)
    parts = sorted((logs / "mined/candidates.parquet").iterdir())
    assert len(parts) > 5
    queries = [{r["query"] for r in rows(part)} for part in parts]
    assert sum(map(len, queries)) == len(set.union(*queries)) > 20
    assert sorted(map(str, one["candidates"])) == sorted(map(str, many["candidates"]))
    assert {r["source"] for r in many["candidates"]} == {"P0", "P1", "P2", "X3"}
    assert [one[name] for name in ("ct", "qr", "shown")] == [many[name] for name in ("ct", "qr", "shown")]
    groups = list(read_groups(logs / "mined/candidates.parquet", LabelsConfig()))
    assert len(groups) == 80 and len({group.request_id for group in groups}) == 80
    with write_folder(logs / "again", kind="mined") as out:
        mine(logs, out, Always(), SMALL)
    assert [p.read_bytes() for p in sorted((logs / "again/candidates.parquet").iterdir())] == [
        p.read_bytes() for p in parts
    ]


def test_a_killed_run_scores_no_part_twice(logs):
    """Killed in theta's fourth part, and then once more while candidates are written."""
    whole = Counting()
    with write_folder(logs / "whole", kind="mined") as out:
        mine(logs, out, whole, SMALL)
    work = kept_for(logs / "work", {"seed": 0})
    with pytest.raises(KeyboardInterrupt), write_folder(logs / "killed", kind="mined") as out:
        mine(logs, out, Counting(last=4), SMALL, work)
    assert len(list((work / "theta").glob("part-*"))) == 3
    rest = Counting()
    assert kept_for(logs / "work", {"seed": 0}) == work
    with write_folder(logs / "killed", kind="mined") as out:
        mine(logs, out, rest, SMALL, work)
    assert rest.calls == whole.calls - 3
    once_more = Counting(last=1)
    (work / "candidates/whole.json").unlink()
    with write_folder(logs / "killed", kind="mined") as out:
        mine(logs, out, once_more, SMALL, work)
    for name in ("whole", "killed"):
        assert not (logs / name / ".work").exists()
    files = [sorted((logs / name).rglob("part-*")) for name in ("whole", "killed")]
    assert len(files[0]) > 5 and [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    assert (logs / "whole/rejects.json").read_text() == (logs / "killed/rejects.json").read_text()


def test_what_was_made_from_other_settings_is_not_gone_on_with(tmp_path):
    work = kept_for(tmp_path / "work", {"alpha": 0.6})
    (work / "pairs").mkdir()
    assert (kept_for(tmp_path / "work", {"alpha": 0.6}) / "pairs").exists()
    assert not (kept_for(tmp_path / "work", {"alpha": 0.7}) / "pairs").exists()
    (work / "made_from.json").write_text('{"alpha": 0.')  # a kill
    assert made_from(kept_for(tmp_path / "work", {"alpha": 0.7})) == {"alpha": 0.7}


def test_a_flipped_byte_of_a_finished_part_is_found(logs, tmp_path):
    work = kept_for(tmp_path / "work", {})
    with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "mined", kind="mined") as out:
        mine(logs, out, Counting(last=1), SMALL, work)
    part = sorted((work / "pairs").glob("part-*"))[-1]
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    with (
        pytest.raises(InputError, match=rf"{part.name}: is damaged .* run the command again"),
        write_folder(tmp_path / "mined", kind="mined") as out,
    ):
        mine(logs, out, Counting(), SMALL, work)
    assert not (tmp_path / "mined").exists()
    assert json.loads((work / "pairs/whole.json").read_text())["query_pairs"] > 0


def test_document_texts_at_once_are_those_one_by_one():
    rng = np.random.default_rng(0)
    pieces = [
        "",
        " ",
        "\u3000",
        "\u00ad",
        "\u200b",
        "a",
        "Übung",
        "灯|具",
        "|",
        "x|y ",
        " \tz",
        "\n",
        "\u2060",
        "e\u0301",
    ]
    columns = {
        name: [None if rng.random() < 0.2 else "".join(rng.choice(pieces, rng.integers(0, 4))) for _ in range(2_000)]
        for name in TEXT_FIELDS
    }
    for order in (TEXT_FIELDS, ("keyword", "ocr_cover")):
        expected = [document_text(*row, order=order) for row in zip(*columns.values(), strict=True)]
        made = document_texts({n: pa.array(c, pa.string()) for n, c in columns.items()}, order)
        assert made.to_pylist() == expected and "" in expected
