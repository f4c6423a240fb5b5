"""Steps on disk: whole or not at all, whatever happens while they are written."""

import logging
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crops_jax.artifacts.manifest import read_manifest, seal, verify, write_manifest
from crops_jax.errors import InputError
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.training import checkpoint
from crops_jax.training.checkpoint import BEST_STEP, Checkpoints


def state(value, rows=8):
    """Two arrays, one split over the eight devices, and a step."""
    mesh = make_mesh(MeshConfig())
    split = jax.device_put(np.full((rows, 64), value, np.float32), jax.NamedSharding(mesh, jax.P("data")))
    whole = jax.device_put(np.arange(5, dtype=np.float32) + value, jax.NamedSharding(mesh, jax.P()))
    return {"model": {"split": split, "whole": whole}, "step": jnp.int32(value)}


def described(tree):
    mesh = make_mesh(MeshConfig())
    place = jax.NamedSharding(mesh, jax.P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def names(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_what_is_saved_is_the_state_at_that_moment_though_its_memory_is_donated(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    now = state(0, rows=8192)
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for step in range(4):
            checkpoints.save(step, now)
            now = advance(now)  # while the write goes on
    for step in range(4):
        with Checkpoints(tmp_path, keep=10) as checkpoints:
            found, restored = checkpoints.restore(described(now))
        assert found == 3 - step and equal(restored, state(3 - step, rows=8192))
        (tmp_path / f"checkpoints/{found}/manifest.json").unlink()


def test_a_step_is_an_artefact_that_names_its_config_and_old_ones_go(tmp_path):
    with Checkpoints(tmp_path, keep=2, config={"seed": 7}) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [20, 30]
    manifest = verify(tmp_path / "checkpoints/30")
    assert manifest["config"] == {"seed": 7} and manifest["counts"]["step"] == 30
    assert names(tmp_path) == ["20", "30"]


def test_what_a_kill_left_is_removed_and_the_last_whole_step_is_read(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        checkpoints.save(2, state(2))
    (tmp_path / "checkpoints/2/manifest.json").unlink()  # committed, not sealed
    (tmp_path / "checkpoints/3.orbax-checkpoint-tmp").mkdir()  # begun
    (tmp_path / "checkpoints/1.kept").mkdir()  # somebody's own copy
    (tmp_path / "checkpoints/.3.facts-0.json").touch()  # written, not sealed
    (tmp_path / "checkpoints/notes").touch()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert len(names(tmp_path)) == 6
    with Checkpoints(tmp_path) as checkpoints:
        assert names(tmp_path) == ["1", "1.kept", "notes"]
        assert checkpoints.restore(described(state(1)))[0] == 1
        checkpoints.save(2, state(2))
    assert names(tmp_path) == ["1", "1.kept", "2", "notes"]


def test_arrays_of_the_checkpoint_alone_are_told_too(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {**state(1), "more": jnp.zeros(3)})
        checkpoints.wait()
        with pytest.raises(InputError) as error:
            checkpoints.restore(described({**state(1), "missing": jnp.zeros(3)}))
    assert error.value.problems == ["missing: not in the checkpoint", "more: in the checkpoint only"]


def test_a_kill_while_an_old_step_is_removed_leaves_none_that_counts_and_is_not_whole(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()

        def killed(folder):
            raise RuntimeError(f"killed before {Path(folder).name} was gone")

        monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoints.save(2, state(2))
        with pytest.raises(RuntimeError, match="before 1 was gone"):
            checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_step_that_a_finished_run_has_lost_is_damage(tmp_path, capsys):
    """Vectors of an older step beside towers of the last one would be a bundle of two models."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    seal(tmp_path, kind="train", config=None, inputs={}, counts={})
    for lost in ("2/manifest.json", "2"):
        place = tmp_path / "checkpoints" / lost
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        told = r"checkpoint step 2 is gone(.|\n)*step 1 is whole, but not what the run selects"
        with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(InputError, match=told):
            checkpoints.restore(described(state(1)))
    with Checkpoints(tmp_path) as checkpoints:  # a run goes on from what there is
        assert checkpoints.restore(described(state(1)))[0] == 1
    assert "warning: checkpoint step 2 is gone; using step 1" in capsys.readouterr().err
    seal(tmp_path, kind="train", config=None, inputs={}, counts={})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore(described(state(1)))[0] == 1
    assert "gone" not in capsys.readouterr().err


def test_of_a_run_that_selects_its_best_step_that_step_alone_has_to_be_there(tmp_path):
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step, score in ((1, 0.1), (2, 0.9), (3, 0.5), (4, 0.2)):
            checkpoints.save(step, state(step), score)
        checkpoints.wait()
        assert checkpoints.best_step() == 2
    seal(tmp_path, kind="train", config=None, inputs={}, counts={BEST_STEP: 2})
    for lost in (1, 4):  # to save room
        shutil.rmtree(tmp_path / "checkpoints" / str(lost))
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.restore(described(state(1)), best=True)[0] == 2
    shutil.rmtree(tmp_path / "checkpoints/2")
    told = r"step 2 is gone(.|\n)*step 3 is whole, but not what the run selects(.|\n)*--train.fresh=True"
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(InputError, match=told):
        checkpoints.restore(described(state(1)), best=True)


def test_another_file_list_than_the_manifest_says_counts_as_damage(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    step = tmp_path / "checkpoints/2"
    changed = read_manifest(step)
    changed["files"][0]["crc32c"] = "00000000"
    write_manifest(step, changed)
    with (
        pytest.raises(
            InputError,
            match=r"checkpoint step 2 is damaged[\s\S]*step 1 is whole, but not what the run selects",
        ),
        Checkpoints(tmp_path, read_only=True) as checkpoints,
    ):
        checkpoints.restore(described(state(1)))
    assert names(tmp_path) == ["1", "2"]
    with Checkpoints(tmp_path) as checkpoints:  # a run, which will write step 2 again
        assert checkpoints.restore(described(state(1)))[0] == 1
    said = capsys.readouterr().err
    assert "checkpoint step 2 is damaged" in said and "using step 1" in said
    assert names(tmp_path) == ["1"]


@contextmanager
def full_disk(folder):
    """`folder` on a disk of 2 MiB where that can be had, else files that may not grow beyond 2 MiB."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], stderr=subprocess.DEVNULL).returncode:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
    else:
        try:
            yield
        finally:
            subprocess.run(["umount", folder], check=True)


def test_the_echoes_of_a_failed_save_print_no_tracebacks(tmp_path, monkeypatch, capfd):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    closed, other = (SimpleNamespace(exc_value=RuntimeError(said)) for said in ("Event loop is closed", "other"))
    with pytest.raises(InputError), Checkpoints(tmp_path):
        raise InputError("a save that failed")
    for echo in (closed, other):
        sys.unraisablehook(echo)
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    assert told == [other] and capfd.readouterr().err == ""


def test_a_full_disk_leaves_the_last_step_and_says_what_is_needed(tmp_path):
    folder = tmp_path / "disk"
    noise = np.random.default_rng(0).standard_normal((1 << 20,), np.float32)  # cannot be compressed
    with full_disk(folder):
        with pytest.raises(InputError) as error, Checkpoints(folder) as checkpoints:
            checkpoints.save(1, state(1))
            checkpoints.save(2, {**state(2), "large": jnp.asarray(noise)})
            for _ in range(600):  # as training does, step by step, long before the next save
                checkpoints.check()
                time.sleep(0.1)
            raise AssertionError("the failed save was never told")
        said = str(error.value)
        assert "could not be saved" in said and "it takes 4,19" in said and "step 1 is whole" in said
        with Checkpoints(folder) as checkpoints:
            assert names(folder) == ["1"]
            step, restored = checkpoints.restore(described(state(1)))
        assert step == 1 and equal(restored, state(1))
