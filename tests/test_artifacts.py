import json
import os
import shutil
from pathlib import Path

import pytest

from crops_jax.artifacts import folders, manifest
from crops_jax.artifacts.folders import link_folder, write_folder
from crops_jax.artifacts.manifest import (
    MANIFEST,
    file_facts,
    fingerprint,
    is_current,
    read_manifest,
    require_made_from,
    same_config,
    seal,
    verify,
    write_manifest,
)
from crops_jax.errors import InputError


def make(target, text="hello", config=None, inputs=None):
    with write_folder(target, kind="logs", config=config, inputs=inputs) as out:
        (out / "deep/a.txt").write_text(text)
        out.counts["rows"] = 3
    return target


def test_a_sealed_folder_verifies(tmp_path):
    manifest = verify(make(tmp_path / "a"))
    assert manifest["counts"] == {"rows": 3}
    # crc32c of "hello", base 16, from the checksum's published table implementation.
    assert manifest["files"] == [{
        "path": "deep/a.txt", "size": 5, "crc32c": "9a71bb4c",
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }]  # fmt: skip


def test_every_kind_of_damage_is_listed_at_once(tmp_path):
    folder = tmp_path / "a"
    with write_folder(folder, kind="logs") as out:
        for name in ("flipped", "cut", "gone"):
            (out / name).write_bytes(b"0123456789")
    (folder / "flipped").write_bytes(b"0123456788")
    (folder / "cut").write_bytes(b"01234")
    (folder / "gone").unlink()
    (folder / "new").mkdir()
    (folder / "new/part-1").write_bytes(b"")
    for no_data in ("_SUCCESS", "README.txt", "notes.md"):
        (folder / no_data).write_bytes(b"")
    with pytest.raises(InputError) as error:
        verify(folder)
    text = "\n".join(error.value.problems)
    assert "flipped: its bytes have changed" in text
    assert "cut: 5 bytes, the manifest says 10" in text
    assert "gone: missing" in text
    assert "new/part-1: came in after the folder was sealed" in text and len(error.value.problems) == 4


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    folder = make(tmp_path / "a")
    manifest = read_manifest(folder)
    manifest["files"][0]["path"] = "../a/deep/a.txt"
    write_manifest(folder, manifest)
    with pytest.raises(InputError, match="must stay inside"):
        verify(folder)


def test_every_bit_of_a_manifest_counts(tmp_path):
    folder = make(tmp_path / "a", config={"x": [1, None, "é"]}, inputs={"source": make(tmp_path / "source")})
    good = (folder / MANIFEST).read_bytes()
    assert json.loads(good)["seal"] in good.decode().splitlines()[-2]
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST).write_bytes(bad)
        with pytest.raises(InputError):
            read_manifest(folder)
    (folder / MANIFEST).write_bytes(good)
    assert verify(folder)["config"] == {"x": [1, None, "é"]}


def test_a_manifest_of_an_older_version_is_read_as_it_was(tmp_path):
    folder = make(tmp_path / "a")
    manifest = read_manifest(folder)
    del manifest["seal"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert read_manifest(folder) == manifest == verify(folder)
    (file,) = manifest["files"][:1]
    for bad in (
        {"files": None}, {"files": ["a.txt"]}, {"files": [{"path": "a.txt"}]}, {"files": [file | {"size": "3"}]},
        {"inputs": []}, {"inputs": {"logs": "a"}}, {"counts": None},
    ):  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(manifest | bad))
        with pytest.raises(InputError, match="the artefact is damaged"):
            read_manifest(folder)
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        read_manifest(folder)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    folder = make(tmp_path / "a", "first")
    with pytest.raises(RuntimeError), write_folder(folder, kind="logs") as out:
        (out / "b.txt").write_text("second")
        raise RuntimeError
    assert (folder / "deep/a.txt").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_no_command_wrote_there_is_not_replaced(tmp_path, monkeypatch):
    """Somebody's files, a manifest of something else, another artefact, a file, the folder that one is in."""
    for name, file, text in (("mine", "thesis.txt", "years"), ("site", MANIFEST, '{"name": "a web page"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "file").write_text("text")
    with write_folder(tmp_path / "mined", kind="mined"):
        pass
    monkeypatch.chdir(tmp_path / "mine")
    for name, said in {
        "mine": "the folder that the command runs in", "site": "are no folder of logs", "file": "is a file",
        "mined": "holds mined, and logs is to be written there", ".": "are no folder of logs",
    }.items():  # fmt: skip
        before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
        with pytest.raises(InputError, match=said):
            make(tmp_path / name)
        assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="are no folder of logs"):
        make(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    path = make(tmp_path / "a", "first") / MANIFEST
    path.write_bytes(path.read_bytes()[:300])  # damaged: made again
    assert (make(tmp_path / "a", "second") / "deep/a.txt").read_text() == "second"
    with write_folder(tmp_path / "raw", kind="unchecked logs"):
        pass
    assert read_manifest(make(tmp_path / "raw"))["kind"] == "logs", "what check_logs seals may be imported again"


def test_a_place_that_takes_no_folder_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("somebody's")
    for place in (tmp_path / "file/logs", tmp_path / "file/below/logs", Path("/proc/none/logs")):
        with pytest.raises(InputError, match="nothing can be written there") as raised:
            folders.require_place(place, "logs")
        assert raised.value.place == str(place.parent)
    folders.require_place(tmp_path / "new/logs", "logs")
    assert [path.name for path in (tmp_path / "new").iterdir()] == []  # the trial leaves nothing


def test_a_missing_or_foreign_folder_says_what_makes_it(tmp_path):
    with pytest.raises(InputError, match=r"no such folder; make it with `python -m crops_jax.mine`"):
        read_manifest(tmp_path / "none", "mined", "python -m crops_jax.mine")
    with pytest.raises(InputError, match="holds 'logs', but 'mined' is needed"):
        read_manifest(make(tmp_path / "a"), "mined")


def test_current_means_same_config_and_same_inputs(tmp_path):
    source = make(tmp_path / "source")
    target = make(tmp_path / "t", config={"x": (1, 2)}, inputs={"source": source})
    assert is_current(target, kind="logs", config={"x": (1, 2)}, inputs={"source": source})
    assert not is_current(target, kind="logs", config={"x": (1, 3)}, inputs={"source": source})
    make(source, "other text")
    assert not is_current(target, kind="logs", config={"x": (1, 2)}, inputs={"source": source})


def test_what_is_current_stops_where_its_logs_have_changed_since(tmp_path, monkeypatch):
    logs, cut = make(tmp_path / "logs"), tmp_path / "logs/deep/a.txt"
    made = {"kind": "mined", "config": None, "inputs": {"logs": logs}}
    for target in ("mined", "other"):
        with write_folder(tmp_path / target, **made):
            pass
    looked = []
    monkeypatch.setattr(
        manifest, "verify", lambda path, *kind, **how: looked.append(path) or verify(path, *kind, **how)
    )
    assert all(is_current(tmp_path / target, **made) for target in ("mined", "other", "mined"))
    assert looked.count(logs) == 1  # a list of stages asks often
    cut.unlink()
    with pytest.raises(InputError, match=r"deep/a\.txt: missing[\s\S]*python -m crops_jax\.check_logs"):
        is_current(tmp_path / "mined", **made)
    assert not is_current(tmp_path / "mined", **made | {"config": 1})  # it is made again, and looks itself
    make(logs)
    assert is_current(tmp_path / "mined", **made)


def test_another_version_of_the_code_makes_a_folder_again(tmp_path, monkeypatch):
    target = make(tmp_path / "t")
    monkeypatch.setattr(manifest, "__version__", "another")
    assert not is_current(target, kind="logs", config=None, inputs={})
    assert is_current(make(target), kind="logs", config=None, inputs={})


def test_a_kill_while_a_folder_is_sealed_leaves_it_unsealed(tmp_path, monkeypatch):
    folder = make(tmp_path / "a")

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(folder), "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        seal(folder, kind="logs", config=None, inputs={}, counts={})
    assert not (folder / MANIFEST).exists()


def test_sealing_again_gives_a_folder_that_verifies(tmp_path):
    folder = make(tmp_path / "a")
    seal(folder, kind="logs", config=None, inputs={}, counts={})
    assert [f["path"] for f in verify(folder)["files"]] == ["deep/a.txt"]


def test_a_folder_that_lost_a_file_is_not_current(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "deep/a.txt").unlink()
    assert not is_current(folder, kind="logs", config=None, inputs={})


def test_an_artefact_of_an_older_source_is_refused(tmp_path):
    source = make(tmp_path / "source")
    target = make(tmp_path / "t", inputs={"source": source})
    require_made_from(target, "source", source, "verb")
    make(source, "other text")
    with pytest.raises(InputError, match=r"was made from another .*source; make it again with `verb`"):
        require_made_from(target, "source", source, "verb")


def nested(tmp_path):
    """A sealed folder that holds a sealed folder."""
    step = make(tmp_path / "run/steps/3")
    (tmp_path / "run/log.txt").write_text("line")
    seal(tmp_path / "run", kind="train", config=None, inputs={}, counts={})
    return tmp_path / "run", step


def test_a_sealed_folder_within_is_named_by_its_manifest_and_checked_with_the_outer_one(tmp_path, monkeypatch):
    run, step = nested(tmp_path)
    assert [f["path"] for f in verify(run)["files"]] == ["log.txt", "steps/3/manifest.json"]
    read = []
    monkeypatch.setattr(manifest, "file_facts", lambda path, root: read.append(path.name) or file_facts(path, root))
    seal(run, kind="train", config=None, inputs={}, counts={})
    assert sorted(read) == ["log.txt", "manifest.json"]  # what a step holds is not read again
    (step / "deep/a.txt").write_text("HELLO")
    with pytest.raises(InputError, match=r"steps/3/deep/a\.txt: its bytes have changed"):
        verify(run)


def test_shares_together_read_every_file_once(tmp_path, monkeypatch):
    with write_folder(tmp_path / "a", kind="logs") as out:
        for size in (50, 30, 20, 10):
            (out / f"{size}").write_bytes(bytes(size))
    read = []
    monkeypatch.setattr(manifest, "file_facts", lambda path, root: read.append(path.name) or file_facts(path, root))
    verify(tmp_path / "a", share=(0, 2))
    assert sorted(read) == ["10", "50"]
    verify(tmp_path / "a", share=(1, 2))
    assert sorted(read) == ["10", "20", "30", "50"]


def test_what_a_killed_process_left_goes_and_what_another_machine_fills_stays(tmp_path, monkeypatch):
    dead = tmp_path / f".a.tmp-{folders._host()}-999999999"
    other, old = tmp_path / ".a.tmp-otherhost-1", tmp_path / ".a.tmp-gonehost-1"
    for folder in (dead, other, old):
        folder.mkdir()
        (folder / "file").write_text("part")
    for path in (old, old / "file"):
        os.utime(path, (0, 0))
    make(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, "a"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    make(tmp_path / "a")
    whole = verify(tmp_path / "a")
    old = tmp_path / f".a.old-{folders._host()}-999999999"
    (tmp_path / "a").rename(old)
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "a", kind="test"):
        raise ZeroDivisionError
    assert verify(tmp_path / "a") == whole and not old.exists()
    shutil.copytree(tmp_path / "a", old)
    make(tmp_path / "a")
    assert not old.exists()


def test_a_link_takes_the_place_of_a_link_alone(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        with write_folder(folder, kind="logs", config=folder.name):
            pass
    link = tmp_path / "arm" / "logs"
    for folder in (one, one, two):
        link_folder(link, folder)
        assert fingerprint(link) == fingerprint(folder)
    with pytest.raises(InputError, match="is no link to"):
        link_folder(one, two)
    assert not one.is_symlink()


def test_no_artefact_takes_the_place_of_a_link_or_a_mount(tmp_path, monkeypatch):
    make(tmp_path / "shared")
    whole = verify(tmp_path / "shared")
    for name, to in {"arm": "shared", "nowhere": "none"}.items():
        (tmp_path / name).symlink_to(tmp_path / to)
        with pytest.raises(InputError, match=f"is a link to .*{to}; name that folder itself, or remove the link"):
            make(tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert verify(tmp_path / "shared") == whole
    monkeypatch.setattr(folders.Path, "is_mount", lambda path: path == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(InputError, match=r"disk: is a mount, .* give a folder below it"):
        make(tmp_path / "disk")
    make(tmp_path / "disk" / "logs")


def test_two_commands_do_not_make_one_artefact(tmp_path):
    said = "a: another command makes it now; wait for its end"
    with write_folder(tmp_path / "a", kind="logs"), write_folder(tmp_path / "b", kind="logs"):
        with pytest.raises(InputError, match=said):
            make(tmp_path / "a")
        assert (tmp_path / ".a.lock").exists()
    with folders.unfinished(tmp_path / "a", {}, None) as work:
        with pytest.raises(InputError, match=r"a\.work: another command makes it now"):
            folders.unfinished(tmp_path / "a", {}, None).__enter__()
        assert work.is_dir()
        make(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}, "no lock is left"
    (tmp_path / ".a.lock").touch()  # of a kill
    make(tmp_path / "a")


def test_a_hash_that_one_host_cannot_see_makes_no_other_config():
    made = {"theta": {"source": "/models/theta"}, "theta_sha256": "1"}
    assert same_config(made, {"theta": {"source": "/models/theta"}})
    assert not same_config(made, made | {"theta_sha256": "2"})
    assert not same_config(made, {"theta": {"source": "/models/other"}})
