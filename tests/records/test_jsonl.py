"""The paper's Listing 1 as JSON lines: written, read, as groups again, and what is wrong in a file."""

import json
from dataclasses import replace

import pytest
from places import ROOT
from record_folders import write

from crops_jax.errors import InputError
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.records import RecordsReader
from crops_jax.records.jsonl import data_item, listed_groups, read_jsonl, write_jsonl


def test_json_lines_round_trip(tmp_path):
    reader = RecordsReader(write(tmp_path / "records"))
    data = [data_item(r) for r in reader.read(range(len(reader)))]
    data[0] = replace(data[0], query='with "quotes"\u2028 and a line\nend')
    assert write_jsonl(data, tmp_path / "a.jsonl") == 50
    assert read_jsonl(tmp_path / "a.jsonl") == data
    first = json.loads((tmp_path / "a.jsonl").read_text().split("\n")[0])
    assert list(first) == ["user_id", "query", "photo_list"]
    assert list(first["photo_list"][0]) == ["photo_id", "photo_content", "hierarchical_label"]
    assert list(first["photo_list"][0]["photo_content"]) == [*TEXT_FIELDS, *COUNTERS]
    groups, items = listed_groups(tmp_path / "a.jsonl")
    again = RecordsReader(write(tmp_path / "again", groups, items))
    assert sorted(map(repr, (data_item(r) for r in again.read(range(50))))) == sorted(map(repr, data))


def test_the_first_copy_of_a_listed_document_gives_its_texts(tmp_path):
    def photo(text, label):
        content = dict.fromkeys(TEXT_FIELDS, text) | dict.fromkeys(COUNTERS, 1)
        return {"photo_id": 1, "photo_content": content, "hierarchical_label": label}

    line = {"user_id": 1, "query": "q", "photo_list": [photo("first", 2), photo("second", 4), photo("third", 3)]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    (group,), items = listed_groups(tmp_path / "a.jsonl")
    assert group.item_id.tolist() == [1] and group.label.tolist() == [4]
    assert items.texts(items.rows([1]))["keyword"] == ["first"]


def test_json_lines_errors_name_line_and_field(tmp_path):
    photo = {"photo_id": 1, "photo_content": dict.fromkeys(TEXT_FIELDS, "t") | dict.fromkeys(COUNTERS, 1),
             "hierarchical_label": 4}  # fmt: skip
    lines = [
        {"user_id": 1, "query": "q", "photo_list": [photo]},
        {"user_id": "1", "query": "q", "photo_list": [photo | {"hierarchical_label": 101}, {"photo_id": True}]},
        {"query": None, "photo_list": {}},
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{]\n" + "[" * 100_000)
    with pytest.raises(InputError) as caught:
        read_jsonl(path)
    assert caught.value.problems[-1].startswith("line 5: is not JSON in UTF-8 (maximum recursion depth")
    assert caught.value.problems[:8] == [
        "line 2: user_id is str, not int",
        "line 2: photo_list[0].hierarchical_label is 101, not within 1..100",
        "line 2: photo_list[1].photo_id is bool, not int",
        "line 2: photo_list[1].hierarchical_label is missing",
        "line 2: photo_list[1].photo_content is missing",
        "line 3: user_id is missing",
        "line 3: query is NoneType, not str",
        "line 3: photo_list is dict, not list",
    ]
    assert caught.value.problems[8].startswith("line 4: is not JSON")
    path.write_text('{"user_id": 9223372036854775808, "query": "\\ud800", "photo_list": []}\n')
    with pytest.raises(InputError, match=r"(?s)does not fit in 64 bits.*half of a surrogate pair"):
        read_jsonl(path)
    path.write_text("[]\n" * 30)
    with pytest.raises(InputError, match="and 70 more"):
        read_jsonl(path)


def test_a_byte_order_mark_and_blank_lines_are_read_over(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"user_id": 1, "query": "q", "photo_list": []}\r\n\r\n{]\n')
    with pytest.raises(InputError, match="line 3: is not JSON") as caught:
        read_jsonl(path)
    assert len(caught.value.problems) == 1
    path.write_bytes(path.read_bytes()[:-3])
    assert [item.query for item in read_jsonl(path)] == ["q"]


def test_the_code_of_the_page_writes_groups_and_makes_them_shards_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = RecordsReader(write(tmp_path / "runs/mine/crops/records"))
    page = (ROOT / "docs/own-logs.md").read_text().partition("**Groups as JSON lines.**")[2]
    out, back = (block.partition("```")[0] for block in page.split("```python\n")[1:3])
    exec(out, {})
    assert len((tmp_path / "groups.jsonl").read_text().splitlines()) == len(before) == 50
    exec(back, {})
    listed = [RecordsReader(tmp_path / "runs/mine/listed/records", split) for split in ("train", "validation")]
    queries = [record.query for reader in listed for record in reader.read(range(len(reader)))]
    assert sorted(queries) == sorted(record.query for record in before.read(range(50)))
