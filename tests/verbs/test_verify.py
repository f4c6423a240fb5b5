"""`verify` finds a flipped bit in any file of any artefact."""

import sys

import numpy as np
import pytest

from crops_jax import pipeline, verify
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import MANIFEST
from crops_jax.artifacts.manifest import verify as verify_folder
from crops_jax.errors import InputError

FLIPS = 500
KINDS = {
    "logs",
    "mined",
    "testsets",
    "tokenizer",
    "records",
    "train",
    "embeddings",
    "index",
    "eval",
    "export",
    "report",
    "bundle",
}


def test_500_flipped_bits_are_all_found(own_shop, tmp_path):
    """Each in a random bit of a random file of a random artefact: data, indexes, checkpoints, manifests."""
    pipeline.run([own_shop])  # which has only the report to write
    found = {m.parent for m in tmp_path.rglob(MANIFEST)}
    folders = sorted(f for f in found if found.isdisjoint(f.parents))
    assert {verify_folder(folder)["kind"] for folder in folders} == KINDS
    files = {folder: [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size] for folder in folders}
    draw, flipped, missed = np.random.default_rng(0), set(), []
    for _ in range(FLIPS):
        folder = folders[draw.integers(len(folders))]
        path = files[folder][draw.integers(len(files[folder]))]
        good = path.read_bytes()
        bit = int(draw.integers(8 * len(good)))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            verify_folder(folder)
            missed.append(f"bit {bit} of {path}")
        except InputError:
            flipped |= {folder, path.suffix, path.name}
        finally:
            path.write_bytes(good)
    assert missed == []
    assert flipped >= {*folders, MANIFEST, ".parquet", ".json", ".npy", ".safetensors", ".html"}
    for folder in folders:
        verify_folder(folder)


def test_the_command_names_every_bad_folder_and_goes_on(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        with write_folder(tmp_path / name, kind="logs") as out:
            (out / "file").write_text("text")
    (tmp_path / "a/file").write_text("tex")
    manifest = (tmp_path / "c" / MANIFEST).read_text()
    (tmp_path / "c" / MANIFEST).write_text(manifest.replace('"logs"', '"mogs"'))
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path)])
    with pytest.raises(InputError, match=r"a: file: 3 bytes[\s\S]*c.*has changed since it was written"):
        verify.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["BAD", "ok", "BAD"]


def test_an_artefact_behind_a_link_is_checked_once(tmp_path, monkeypatch, capsys):
    with write_folder(tmp_path / "disk/logs", kind="logs") as out:
        (out / "file").write_text("text")
    (tmp_path / "work/back").mkdir(parents=True)
    for link, to in {"logs": "../disk/logs", "again": "../disk/logs", "back/up": "..", "gone": "gone"}.items():
        (tmp_path / "work" / link).symlink_to(to)
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path / "work")])
    verify.main()
    assert capsys.readouterr().out.splitlines() == [f"ok   {tmp_path / 'work/again'}  (logs, 1 files)"]


def test_a_folder_without_an_artefact_is_told_and_the_others_are_checked(tmp_path, monkeypatch, capsys):
    with write_folder(tmp_path / "logs", kind="logs") as out:
        (out / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["verify", *(str(tmp_path / name) for name in ("empty", "logs", "typo"))])
    with pytest.raises(InputError, match=r"2 problems\n.*empty: no manifest\.json found.*\n.*typo: no manifest"):
        verify.main()
    assert capsys.readouterr().out.startswith(f"ok   {tmp_path / 'logs'} ")


def test_what_no_manifest_names_is_told(tmp_path, monkeypatch, capsys):
    """A bundle that lost its manifest still holds the sealed index."""
    with write_folder(tmp_path / "work/bundle", kind="bundle") as out:
        for name in ("ids.npy", "tower/config.json", "tower/pooling/config.json"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("text")
        with write_folder(out / "index", kind="index") as index:
            (index / "file").write_text("text")
    (tmp_path / "work/_SUCCESS").write_text("")
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path / "work")])
    verify.main()
    assert capsys.readouterr() == (f"ok   {tmp_path / 'work/bundle'}  (bundle, 4 files)\n", "")
    (tmp_path / "work/bundle" / MANIFEST).unlink()
    (tmp_path / "work/arm/train").mkdir(parents=True)
    (tmp_path / "work/arm/train/run.json").write_text("{}")
    for root in (tmp_path / "work", tmp_path / "work/bundle"):
        monkeypatch.setattr(sys, "argv", ["verify", str(root)])
        with pytest.raises(InputError, match=r"work/bundle: files that no manifest names \(3\): its manifest"):
            verify.main()
        assert capsys.readouterr().out == f"ok   {tmp_path / 'work/bundle/index'}  (index, 1 files)\n"
    (tmp_path / "work/bundle").rename(tmp_path / "work/copied")
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path / "work/copied")])
    with pytest.raises(InputError, match=r"work/copied: files that no manifest names"):
        verify.main()


def test_a_run_that_goes_on_is_told_and_is_no_error(tmp_path, monkeypatch, capsys):
    with write_folder(tmp_path / "train/checkpoints/3", kind="checkpoint") as out:
        (out / "file").write_text("text")
    (tmp_path / "train/run.json").write_text("{}")
    (tmp_path / "knowledge.journal.jsonl").write_text("")
    (tmp_path / "theta.cache").mkdir()
    (tmp_path / "theta.cache/0.npy").write_text("")
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path)])
    verify.main()
    assert capsys.readouterr().err.splitlines() == [
        f"not checked: {tmp_path}: files that no manifest names (1)",
        f"not checked: {tmp_path / 'theta.cache'}: files that no manifest names (1)",
        f"not checked: {tmp_path / 'train'}: files that no manifest names (1)",
    ]
