"""Preflight: a good run passes, and everything that is wrong is said at once, by one process or several."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from places import GOLDEN

from crops_jax import preflight
from crops_jax.artifacts.folders import write_folder
from crops_jax.command_line import load_file
from crops_jax.errors import EXIT_BAD_INPUT
from crops_jax.labels import Group
from crops_jax.models import hf_config
from crops_jax.models.config import LoraConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.records import Items, RecordsConfig, write_records
from crops_jax.runs import start, versions
from crops_jax.text.tokenizer import train_tokenizer
from crops_jax.training.config import GradCacheConfig, ValidationConfig

CONFIG = """
from crops_jax.config import Experiment
from crops_jax.batches.config import InputConfig
from crops_jax.models.config import DualEncoderConfig, Qwen2Config
from crops_jax.text.tokenizer import TextConfig

EXPERIMENT = Experiment(
    workdir="work",
    vocabulary=300,
    text=TextConfig(append_eos=True, max_query_tokens=8, max_doc_tokens=8),
    input=InputConfig(batch_queries=16, docs_per_query=2, shards=8),
    model=DualEncoderConfig(
        backbone=Qwen2Config(vocab_size=300, width=8, layers=1, heads=4, kv_heads=2, head_size=4, ffn=8),
        tie_towers=True,
    ),
)
"""
PARAMETERS = (
    300 * 8 + 2 * 8 + 8 + (8 * 16 + 16) + 2 * (8 * 8 + 8) + 16 * 8 + 3 * 8 * 8 + 1
)  # tables, norms, q, kv, o, ffn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with config.py, and below work/ the tokeniser and 24 groups of two documents."""
    root = tmp_path_factory.mktemp("root")
    (root / "config.py").write_text(CONFIG)
    experiment = replace(load_file(root / "config.py"), workdir=str(root / "work"))
    texts = [f"number {i}" for i in range(10)]
    with write_folder(experiment.folder("tokenizer"), kind="tokenizer") as out:
        train_tokenizer(texts, 300, out / "tokenizer.json")
    fields = ("ocr_cover", "photo_caption", "keyword", "click_query")
    items = Items({"items": pa.table({"item_id": list(range(10)), **dict.fromkeys(fields, texts)})})
    labels, sources = np.array([5, 2], np.int32), np.array([2, 32], np.int32)
    groups = [Group(f"r{g}", g, f"number {g}", np.array([g % 5, 5 + g % 5]), labels, sources) for g in range(24)]
    with write_folder(experiment.arm_folder("records"), kind="records") as out:
        write_records(groups, items, out, RecordsConfig(shards=2, validation_share=0), seed=0)
    return root


@pytest.fixture
def experiment(folder):
    return replace(load_file(folder / "config.py"), workdir=str(folder / "work"))


def problems(experiment):
    return {check.name: check.said for check in preflight.run(experiment) if not check.ok}


def test_a_run_that_has_all_it_needs_passes_and_nothing_is_left_behind(experiment):
    checks = preflight.run(experiment)
    assert [check.name for check in checks if not check.ok] == []
    said = {check.name: check.said for check in checks}
    assert said["devices"] == "8 x cpu, processes: 1" and said["mesh"] == "replica 1, data 8, tensor 1"
    assert said["records"].startswith("24 groups, ") and said["all_reduce"] == "0 + ... + 7 = 28"
    assert list(experiment.arm_folder("train").iterdir()) == []
    assert preflight.table(checks).count("\nok  ") == len(preflight.checks(experiment)) + 1


def test_all_problems_are_said_at_once(experiment, tmp_path):
    (tmp_path / "crops").write_text("a file where a folder should be")
    model = replace(experiment.model, init_from=str(tmp_path / "gone"))
    wrong = replace(
        experiment, workdir=str(tmp_path), model=model, mesh=MeshConfig(tensor=4),
        input=replace(experiment.input, shards=1),
    )  # fmt: skip
    said = problems(wrong)
    assert set(said) == {"mesh", "tokenizer", "records", "weights", "train_folder"}
    assert "tensor parallelism 4 does not divide 2 KV heads" in said["mesh"]
    assert "input.shards = 1 does not divide over 2 devices" in said["mesh"]
    assert "write_records" in said["tokenizer"] and "write_records" in said["records"]
    assert "no local folder" in said["weights"] and "cannot be written" in said["train_folder"]


def test_what_training_would_refuse_at_once_is_refused(experiment):
    said = problems(replace(experiment, gradcache=GradCacheConfig(doc_micro_batches=3)))
    assert set(said) == {"step"} and "gradcache.doc_micro_batches = 3" in said["step"]
    said = problems(replace(experiment, validation=ValidationConfig(every=1)))
    assert set(said) == {"step"} and "has no split 'validation'" in said["step"]


def test_records_are_checked_against_their_manifest_and_the_batch(experiment, tmp_path):
    shutil.copytree(experiment.workdir, tmp_path / "work")
    moved = replace(experiment, workdir=str(tmp_path / "work"))
    assert "docs_per_query is 1" in problems(replace(moved, input=replace(moved.input, docs_per_query=1)))["records"]
    shard = min(moved.arm_folder("records").glob("*-of-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "the manifest says" in problems(moved)["records"]


def test_a_checkpoint_of_another_architecture_is_found_without_loading_it(experiment):
    golden = str(GOLDEN / "qwen2_tiny")
    said = problems(replace(experiment, model=replace(experiment.model, init_from=golden)))
    assert set(said) == {"weights"} and "config.json has" in said["weights"] and "shape" in said["weights"]
    run = experiment.arm_folder("train") / "run.json"
    run.touch()  # that goes on from its own checkpoint
    assert "weights" not in problems(replace(experiment, model=replace(experiment.model, init_from=golden)))
    run.unlink()


def test_weights_that_are_read_otherwise_than_their_folder_says_are_noted(experiment, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "qwen2_tiny", tmp_path / "m"))
    other = replace(experiment, model=replace(
        experiment.model, init_from=str(folder), backbone=hf_config.from_hf_json(folder / "config.json")))  # fmt: skip
    assert "note" not in start.check(other)
    train_tokenizer(["another text"], 280, folder / "tokenizer.json")
    assert "its tokenizer.json gives other ids than the run's tokenizer" in start.check(other)
    shutil.copy(experiment.folder("tokenizer") / "tokenizer.json", folder / "tokenizer.json")
    assert "note" not in start.check(other)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Dense", "Dense")]
    listed = [{"idx": int(n), "name": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
              for n, path, kind in modules]  # fmt: skip
    for place, said in {"modules.json": listed, "1_Pooling/config.json": {
        "word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False,
    }, "2_Dense/config.json": {"in_features": 32, "out_features": 8, "bias": True,
                               "activation_function": "torch.nn.modules.linear.Identity"}}.items():  # fmt: skip
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps(said))
    told = start.check(other)
    assert "note: it pools by cls, model.pooling is last" in told and "its Dense behind the pooling is left out" in told


def test_room_for_the_checkpoints_is_three_float32_copies_each(experiment, monkeypatch):
    counters = 4 * 9  # the step, and two of the optimiser for each of its four groups of parameters
    needed = (4 * 3 * PARAMETERS + counters) * (experiment.train.keep + 1)
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(needed))
    assert problems(experiment) == {}
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(needed - 1))
    assert "3 checkpoints take" in problems(experiment)["train_folder"]
    best = replace(experiment, validation=ValidationConfig(every=1, select="recall"))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(needed))
    assert "4 checkpoints take" in problems(best)["train_folder"]  # the best one may be older than those kept
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(needed - 1))
    kept = experiment.arm_folder("train") / "checkpoints/200/d"  # of a run that starts again
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"1")
    assert problems(experiment) == {}
    kept.parent.rename(kept.parent.with_name("200.kept"))  # somebody's own
    assert "3 checkpoints take" in problems(experiment)["train_folder"]
    shutil.rmtree(experiment.arm_folder("train") / "checkpoints")
    # What LoRA does not train has no moments.
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(needed // 2))
    adapted = replace(experiment, model=replace(experiment.model, lora=LoraConfig(rank=1)))
    assert problems(adapted) == {}


def test_versions_devices_and_the_sum_can_be_wrong(experiment, monkeypatch, tmp_path):
    have = {"jax": "0.9.1", "libtpu": "0.0.1"}
    monkeypatch.setattr(versions, "installed", lambda name: have.get(name, "0.12.8") if name != "tyro" else None)
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(preflight, "_DEVICE_FILES", {"cuda": (str(tmp_path / "nvidia0"),)})
    monkeypatch.setattr(preflight.jnp, "sum", preflight.jnp.max)
    said = problems(experiment)
    assert set(said) == {"versions", "devices", "all_reduce"}
    assert "jax<0.12,>=0.10 is needed, 0.9.1 is installed" in said["versions"]
    assert "libtpu==" in said["versions"] and "tyro<2,>=1.0 is needed, none is installed" in said["versions"]
    assert "nvidia0: is there, but JAX runs on cpu: pip install -c constraints.txt '.[cuda]'" in said["devices"]
    assert "gave 7" in said["all_reduce"]


def two_processes(folders, flags):
    """(exit code, standard output) of both processes of one preflight."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
           "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}  # fmt: skip
    command = [sys.executable, "-m", "crops_jax.preflight", "--config", "config.py"]
    started = [
        subprocess.Popen([*command, *own], cwd=cwd, env={**env, "JAX_PROCESS_ID": str(i)}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for i, (cwd, own) in enumerate(zip(folders, flags, strict=True))
    ]  # fmt: skip
    return [(process.returncode, out) for process in started for out in [process.communicate(timeout=100)[0]]]


@pytest.mark.slow
def test_processes_that_do_not_share_folder_and_config_end_together(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "apart")
    first, second = two_processes([folder, tmp_path / "apart"], [[], ["--seed=1"]])
    assert first[0] == second[0] == EXIT_BAD_INPUT and "problem" not in second[1]
    # Gloo's threads write to standard output piece by piece: a line of ours can stand behind half of theirs.
    wrong = re.findall(r"problem  (\w+)(.*)", first[1])
    assert wrong[0][0] == "train_folder" and wrong[-1][0] == "same"
    assert "process 0: work/crops/train: is not the folder of process 1" in first[1]
    assert "process 1: config is" in wrong[-1][1]
    assert "4 x cpu, processes: 2" in first[1] and "0 + ... + 3 = 6" in first[1]


@pytest.mark.slow
def test_a_process_without_the_config_file_ends_both(folder, tmp_path):
    (code, _), (other, _) = two_processes([folder, tmp_path], [[], []])
    assert code == other == EXIT_BAD_INPUT
