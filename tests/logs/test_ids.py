"""Ids of any kind: kept for people, numbers inside the program."""

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import recast, small_world
from whole_reading import everything, rows

from crops_jax import check_logs as command
from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.logs.declared import IdSpace
from crops_jax.logs.folder import open_logs
from crops_jax.retrieval.corpus import read_corpus

ITEM_TABLES = ("items", "candidates", "feed", "judgments")
USER_TABLES = ("searches", "feed")


def rename(logs, items=None, users=None):
    """The ids of the small world by other names: an Arrow array of them for every id."""
    for tables, column, names in ((ITEM_TABLES, "item_id", items), (USER_TABLES, "user_id", users)):
        for table in tables if names else ():
            recast(logs, table, **{column: lambda c, names=names: names(c.to_pylist())})
    return logs


def texts(form):
    return lambda ids: pa.array([None if i is None else form(i) for i in ids], pa.string())


KINDS = {
    "texts": (texts(lambda i: f"v_{i}"), "string", lambda i: f"v_{i}"),
    "dictionaries": (lambda ids: texts(lambda i: f"v_{i}")(ids).dictionary_encode(), "string", lambda i: f"v_{i}"),
    "UUIDs as text": (texts(lambda i: str(uuid.UUID(int=i))), "string", lambda i: str(uuid.UUID(int=i))),
    "UUIDs": (
        lambda ids: pa.array([uuid.UUID(int=i).bytes for i in ids], pa.uuid()), "string",
        lambda i: str(uuid.UUID(int=i)),
    ),
    "digits as text": (texts(lambda i: f"{i:03d}"), "string", lambda i: f"{i:03d}"),
    "beyond 63 bits": (
        lambda ids: pa.array([2**64 - 100 + i for i in ids], pa.uint64()), "uint64", lambda i: 2**64 - 100 + i,
    ),
    "below 0": (lambda ids: pa.array([-1 - i for i in ids], pa.int64()), "int64", lambda i: -1 - i),
}  # fmt: skip


def named(found, name):
    """(query, source, item, evidence) of the candidates, with each item's own name put back."""
    back = {str(name(i)): i for i in range(100)}
    return sorted((r["query"], r["source"], back[r["platform_item_id"]], r["evidence"] or "") for r in found)


@pytest.mark.parametrize(
    "kind", [k if k in ("texts", "UUIDs", "below 0") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_items_of_any_name_are_mined_as_numbers_are(tmp_path, plain, kind):
    make, written_as, name = KINDS[kind]
    logs = rename(small_world(tmp_path), items=make)
    command.run(logs)
    verify(logs)
    assert read_manifest(logs)["config"] == {
        "time_unit": "ms", "users": None, "items": {"type": written_as, "salt": 0}
    }  # fmt: skip
    found = everything(logs)
    wanted = sorted((r["query"], r["source"], r["item_id"], r["evidence"] or "") for r in plain["candidates"])
    assert named(found["candidates"], name) == wanted
    assert all(0 <= r["item_id"] < 2**63 for r in found["candidates"])
    back = {str(name(i)): i for i in range(100)}
    for test_set in ("ct", "qr", "unexposed"):
        pairs = {(r["query"], back[r["platform_item_id"]]) for r in found[test_set]}
        assert pairs == {(r["query"], r["item_id"]) for r in plain[test_set]}
    corpus = read_corpus(logs)
    by_name = dict(zip(corpus.id_table()["platform_item_id"].to_pylist(), corpus.texts, strict=True))
    assert by_name == {name(i): text for i, text in plain["corpus"]}
    pairs = {r["platform_item_id"]: r["item_id"] for r in rows(logs / "id_map/items.parquet")}
    assert pairs == {r["platform_item_id"]: r["item_id"] for r in found["candidates"]} | pairs
    assert len(pairs) == 10


def test_users_of_any_name(tmp_path, plain):
    logs = rename(small_world(tmp_path), users=texts(lambda u: f"u-{u}"))
    command.run(logs)
    found = everything(logs)
    assert [r["evidence"] for r in found["candidates"] if r["source"] == "P2"] == ["u-1"]
    assert [(r["query"], r["item_id"]) for r in found["candidates"]] == [
        (r["query"], r["item_id"]) for r in plain["candidates"]
    ]
    assert {r["platform_user_id"] for r in rows(logs / "id_map/users.parquet")} == {"u-1", "u-2", "u-3"}
    assert not (logs / "id_map/items.parquet").exists()


def test_a_part_without_users_beside_one_that_names_them(tmp_path, plain):
    logs = rename(small_world(tmp_path), users=texts(lambda u: f"u-{u}"))
    searches = pq.read_table(logs / "train/searches.parquet")
    (logs / "train/searches.parquet").unlink()
    (logs / "train/searches.parquet").mkdir()
    for name, part in (("a", searches.slice(0, 3)), ("b", searches.slice(3).drop_columns(["user_id"]))):
        pq.write_table(part, logs / f"train/searches.parquet/{name}")
    command.run(logs)
    assert len(everything(logs)["candidates"]) == len(plain["candidates"])
    assert check_logs(logs, "train").rejects["search_without_user"].count == 2


def test_plain_numbers_have_no_map(tmp_path):
    logs = small_world(tmp_path)
    command.run(rename(logs, items=texts(str)))
    assert (logs / "id_map").is_dir()
    command.run(rename(logs, items=lambda ids: pa.array([int(i) for i in ids])))
    assert not (logs / "id_map").exists() and read_corpus(logs).id_table() is None


def test_a_number_in_one_table_and_its_text_in_another_are_one_id(tmp_path, plain):
    logs = small_world(tmp_path)
    recast(logs, "feed", item_id=pa.string(), user_id=lambda c: pa.array([str(u) for u in c.to_pylist()]))
    found = everything(logs)
    assert named(found["candidates"], str) == sorted(
        (r["query"], r["source"], r["item_id"], r["evidence"] or "") for r in plain["candidates"]
    )


def test_problems_show_ids_as_they_are_written(tmp_path):
    logs = rename(small_world(tmp_path), items=texts(lambda i: f"v_{i}"))
    recast(logs, "feed", item_id=lambda c: pa.array(["nope", *c.to_pylist()[1:]]))
    items = pq.read_table(logs / "items.parquet")
    pq.write_table(pa.concat_tables([items, items.slice(0, 1)]), logs / "items.parquet")
    with pytest.raises(InputError) as error:
        check_logs(logs, "train")
    assert error.value.problems == [
        "items.item_id: 1 keys occur more than once, e.g. item_id='v_0' times=2",
        "feed.item_id: 1 rows with 1 ids that items does not have, e.g. item_id='nope'",
    ]


def test_a_blank_id_is_none(tmp_path):
    logs = rename(small_world(tmp_path), users=texts(lambda u: "\u3000" if u == 2 else str(u)))
    assert check_logs(logs, "train").rejects["search_without_user"].count == 1
    recast(logs, "candidates", item_id=lambda c: pa.array(["", *map(str, c.to_pylist()[1:])]))
    with pytest.raises(InputError, match=r"candidates\.item_id: 1 rows are null"):
        check_logs(logs, "train")


def test_two_ids_with_one_number_take_another_salt(tmp_path, monkeypatch):
    logs = rename(small_world(tmp_path), items=texts(lambda i: f"v_{i}"))
    hashed = IdSpace.number

    def shared(self, ids):  # under the first salt v_0 and v_1 share a number
        clash = [self.salt == 0 and written == "v_1" for written in ids.to_pylist()]
        return np.where(np.array(clash, bool), hashed(self, pa.array(["v_0"])), hashed(self, ids))

    monkeypatch.setattr(IdSpace, "number", shared)
    command.run(logs)
    assert open_logs(logs).declared.items == IdSpace("string", 1)
    assert len({r["item_id"] for r in rows(logs / "id_map/items.parquet")}) == 10
