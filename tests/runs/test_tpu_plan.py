"""What the TPU compiler plans for the train step, gated: kinds and counts of collectives, memory, FLOPs.

Compiles for v5e:4x4 without a TPU, in processes of their own: this one's flags are the CPU's.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from places import ROOT
from tools import missing

from crops_jax.compile_check import read_arguments, report
from crops_jax.errors import InputError
from crops_jax.losses.config import HInfoNCEConfig, SoftmaxCEConfig
from crops_jax.runs.plan import Plan, describe, libtpu_path

CONFIG = "tests/runs/plan_config.py"
LAYERS, TOWERS, WEIGHTS, WIDTH = 3, 2, 7, 448  # weights: q, k, v, o, gate, up, down
USES = LAYERS * TOWERS * WEIGHTS
DOCUMENTS, SLOTS = 256, 32 * 256 + 16 * 64  # of a batch: documents, token slots of both towers
TORUS_AXES = 2  # mesh axes over a torus
SMALL = 2**16  # bytes: norms and biases, which are whole everywhere, and scalars
needs_compiler = pytest.mark.usefixtures("compiler")


@pytest.fixture(scope="module")
def compiler():
    if libtpu_path() is None:
        missing("libtpu")


def _python(*arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def _plan(out, topology, *flags):
    done = _python(
        "-m", "crops_jax.compile_check", "--config", CONFIG, "--topology", topology, "--out", str(out), *flags
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def _count(plan, kind, origin=None, dtype=None):
    return sum(c["count"] for c in plan["collectives"]
               if c["kind"] == kind and origin in (None, c["origin"]) and dtype in (None, c["dtype"]))  # fmt: skip


def _largest_sum(plan):
    """Bytes of the largest group of all-reduces."""
    return max(c["bytes"] for c in plan["collectives"] if c["kind"] == "all-reduce")


@needs_compiler
@pytest.mark.slow
def test_the_plan_of_a_small_step(tmp_path):
    plan = _plan(tmp_path / "plan.json", "v5e:4x4")
    # FSDP: every weight is gathered once for each pass, in bfloat16; its gradient is scattered, ring by ring.
    assert _count(plan, "all-gather", "layers.project") == 2 * USES
    assert _count(plan, "all-gather", "layers.project", "bf16") == 2 * USES
    assert _count(plan, "reduce-scatter", "layers.project", "bf16") == TORUS_AXES * USES
    assert _count(plan, "all-reduce", "layers.project") == 0
    assert _largest_sum(plan) < SMALL
    # The lookup: ids go out, embeddings come back by one all-to-all; likewise their gradients.
    assert _count(plan, "all-to-all", "layers.lookup", "bf16") == 2 * TOWERS
    assert _count(plan, "all-gather", "layers.lookup") == _count(plan, "all-gather", "layers.lookup", "s32") == TOWERS
    assert _count(plan, "all-reduce", "layers.lookup") == _count(plan, "reduce-scatter", "layers.lookup") == 0
    # The loss: the documents of the global batch, once; their gradients are scattered.
    assert _count(plan, "all-gather", dtype="f32") == 1
    gathered = next(c for c in plan["collectives"] if (c["kind"], c["dtype"]) == ("all-gather", "f32"))
    assert gathered["bytes"] == DOCUMENTS * WIDTH * 4
    assert _count(plan, "reduce-scatter", dtype="f32") == TORUS_AXES
    assert {c["kind"] for c in plan["collectives"]} == {"all-gather", "reduce-scatter", "all-to-all", "all-reduce"}
    # Memory, and nothing large that every device keeps whole: 14 M parameters and moments are 168 MB, a sixteenth each.
    assert plan["replicated"] == []
    assert plan["memory"]["arguments"] < 16 * 2**20  # 10.5 MB, and what tiles pad
    assert plan["peak_bytes"] < 56 * 2**20
    assert 0.999 < plan["flops_ratio"] <= 1.10


@needs_compiler
@pytest.mark.slow
def test_on_a_torus_of_three_axes_nothing_large_is_left_to_an_all_reduce(tmp_path):
    plan = _plan(tmp_path / "plan.json", "v5p:2x2x2", "--input.shards=8")
    assert plan["mesh"] == {"replica": 1, "data": 4, "depth": 2, "tensor": 1}
    assert _count(plan, "all-gather", "layers.project", "bf16") == 2 * TORUS_AXES * USES
    assert _count(plan, "all-gather", dtype="f32") == _count(plan, "reduce-scatter", dtype="f32") == TORUS_AXES
    assert _largest_sum(plan) < SMALL


@dataclass(frozen=True)
class Variant:
    """A step that differs from the plain one in one thing, and what its plan has to hold, in one step of a device."""

    flag: str
    gathers: int = 2 * USES  # of weights: for the forward and for the backward pass
    scatters: int = TORUS_AXES * USES  # of their gradients
    document_gathers: int = 1
    document_scatters: int = TORUS_AXES
    permutes: int = 0  # of documents or their gradients
    sums: int = 0  # bytes of all-reduces that are not small, all together
    flops: float = 1.0  # compiled / analytic


# q, k, v and o of every layer: width 448 on one side; 4 heads of 64, or 2, on the other.
ADAPTERS = LAYERS * TOWERS * 8 * (4 * WIDTH + 2 * 256 + 2 * 128)
VARIANTS = {
    # Documents go round 16 devices in each pass, in the backward pass with their gradients.
    "ring": Variant("--loss.form=ring", document_gathers=0, document_scatters=0, permutes=3 * 16),
    # Of 8 devices that split the batch, one mesh axis. Sums: o and down forward, what goes into the others backward;
    # the lookup's, as each device has half of the table's rows, and an eighth of its columns.
    "tensor": Variant(
        "--mesh.tensor=2",
        scatters=USES,
        document_scatters=1,
        sums=4 * LAYERS * (SLOTS // 8) * WIDTH * 2 + SLOTS * (WIDTH // 8) * 4,
    ),
    # Two parts of the documents, each encoded twice: three passes that gather, where queries have two.
    "gradient caching": Variant(
        "--gradcache.doc_micro_batches=2",
        gathers=(2 * 3 + 2) * USES // 2,
        scatters=TORUS_AXES * 3 * USES // 2,
        flops=1.3,
    ),
    # Frozen weights have no gradients. The adapters' are of 8 columns, which the compiler pads and sums whole. What is
    # split of an adapter is the side of the width, one of its two.
    "lora": Variant(
        "--model.lora.rank=8", gathers=2 * (USES + 4 * LAYERS * TOWERS), scatters=0, sums=int(1.25 * 2 * ADAPTERS)
    ),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_plan_of_a_small_step_in_another_way(name, tmp_path):
    variant = VARIANTS[name]
    plan = _plan(tmp_path / "plan.json", "v5e:4x4", variant.flag)
    assert _count(plan, "all-gather", "layers.project", "bf16") == variant.gathers
    assert _count(plan, "all-gather", dtype="bf16") == variant.gathers
    assert _count(plan, "reduce-scatter", dtype="bf16") == variant.scatters
    assert _count(plan, "all-gather", dtype="f32") == variant.document_gathers
    assert _count(plan, "reduce-scatter", dtype="f32") == variant.document_scatters
    permutes = [c for c in plan["collectives"] if (c["kind"], c["dtype"]) == ("collective-permute", "f32")]
    assert sum(c["count"] for c in permutes) == variant.permutes
    assert sum(c["bytes"] for c in permutes) == variant.permutes * DOCUMENTS // 16 * WIDTH * 4
    sums = [c["bytes"] for c in plan["collectives"] if c["kind"] == "all-reduce" and c["bytes"] >= SMALL]
    assert 0.75 * variant.sums <= sum(sums) <= variant.sums
    assert plan["replicated"] == []
    assert plan["flops_ratio"] == pytest.approx(variant.flops, abs=2e-2)  # attention's kernel reports 1 % more


@needs_compiler
@pytest.mark.slow
def test_between_slices_go_parts_of_gradients_and_the_documents_alone(tmp_path):
    """Two slices of 16 devices: a replica in each. A part is what one device holds, a sixteenth; tiles pad it."""
    flags = ("--slices", "2", "--input.shards=32", "--input.packing.query_rows=32")
    plan = _plan(tmp_path / "plan.json", "v5e:4x4", *flags)
    assert plan["mesh"] == {"replica": 2, "data": 4, "ring": 4, "tensor": 1}
    between = [c for c in plan["collectives"] if c["between_slices"]]
    inside = {**plan, "collectives": [c for c in plan["collectives"] if not c["between_slices"]]}
    # Within a slice all is as it is without the other one.
    assert _count(inside, "reduce-scatter", dtype="bf16") == TORUS_AXES * USES
    assert _count(inside, "all-gather", dtype="f32") == 1
    assert _count(inside, "reduce-scatter", dtype="f32") == TORUS_AXES
    assert _largest_sum(inside) < SMALL
    weights = LAYERS * TOWERS * WIDTH * (2 * 4 * 64 + 2 * 2 * 64 + 3 * 1024)
    tables = TOWERS * 4096 * WIDTH
    parts = (2 * weights + 4 * tables) // 16
    assert parts < sum(c["bytes"] for c in between if c["kind"] == "all-reduce") < 1.15 * parts
    documents = DOCUMENTS * WIDTH * 4 // 16
    others = {c["kind"]: c["bytes"] for c in between if c["kind"] != "all-reduce" and c["dtype"] == "f32"}
    assert set(others) == {"all-gather", "reduce-scatter"} and max(others.values()) < 1.15 * documents
    assert all(c["bytes"] < SMALL for c in between if c["dtype"] not in ("bf16", "f32"))


@needs_compiler
def test_a_step_that_does_not_fit_names_buffers_and_knobs(tmp_path):
    out = tmp_path / "plan.json"
    large = ("--input.packing.doc_rows=65536", "--input.batch_queries=8192", "--model.attention=xla")
    flags = (*large, "--out", str(out))
    done = _python("-m", "crops_jax.compile_check", "--config", CONFIG, "--topology", "v5e:4x4", *flags)
    assert done.returncode == 2, done.stderr
    assert "DOES NOT FIT into 16.00 GiB" in done.stdout and "does not fit" in done.stderr
    assert "--model.remat=full" in done.stdout and "--input.packing.doc_rows" in done.stdout
    scores = "float32[4096, 2, 2, 256, 256]"  # of one layer's attention on one device
    assert any(scores in line for line in json.loads(out.read_text())["largest"])


@pytest.mark.parametrize(("loss", "named"), [(HInfoNCEConfig(), True), (SoftmaxCEConfig(), False)])
def test_only_the_loss_that_has_forms_is_told_to_change_its_own(loss, named):
    plan = Plan(
        topology="v5e:4x4", slices=1, devices=16, chip="TPU v5e", hbm_bytes=2**34, mesh={"data": 16}, remat="none",
        model_parameters=1, batch={"queries": 1}, dtype="float32", fits=False, memory=None, refusal="no", largest=[],
        replicated=[], analytic_flops=1, compiled_flops=None, collectives=[], traffic=[], scores_bytes=0, roofline=None,
        lower_s=0.0, compile_s=0.0,
    )  # fmt: skip
    said = report(plan, loss)
    assert "DOES NOT FIT" in said and ("--loss.form=streaming" in said) == named


MESHES = """
import json
from crops_jax.errors import InputError
from crops_jax.runs.plan import describe
from crops_jax.parallel.sharding import MeshConfig, make_mesh

def mesh(topology, slices, **sizes):
    try:
        made = make_mesh(MeshConfig(**sizes), describe(topology, slices))
    except InputError as error:
        return str(error)
    first = made.devices[0].flatten()
    return {**made.shape, "slices": sorted({getattr(d, "slice_index", 0) or 0 for d in first})}

print(json.dumps([mesh("v5e:4x4", 1), mesh("v5e:2x4", 1), mesh("v5p:2x2x2", 1), mesh("v5p:2x4x4", 1),
                  mesh("v5p:4x4x4", 1), mesh("v5e:4x4", 1, tensor=2), mesh("v5e:4x4", 2, replica=2),
                  mesh("v5e:4x4", 2, replica=4), mesh("v5e:4x4", 2)]))
"""


@needs_compiler
def test_a_mesh_follows_slices_and_torus():
    done = _python("-c", MESHES)
    assert done.returncode == 0, done.stderr
    *meshes, refusal = json.loads(done.stdout)
    assert meshes == [
        {"replica": 1, "data": 4, "ring": 4, "tensor": 1, "slices": [0]},
        {"replica": 1, "data": 8, "tensor": 1, "slices": [0]},
        {"replica": 1, "data": 4, "depth": 2, "tensor": 1, "slices": [0]},
        {"replica": 1, "data": 8, "depth": 4, "tensor": 1, "slices": [0]},
        {"replica": 1, "data": 16, "depth": 4, "tensor": 1, "slices": [0]},
        {"replica": 1, "data": 8, "tensor": 2, "slices": [0]},
        {"replica": 2, "data": 4, "ring": 4, "tensor": 1, "slices": [0]},  # the first replica lies in one slice
        {"replica": 4, "data": 8, "tensor": 1, "slices": [0]},
    ]
    assert "mesh.replica = 1: is no multiple of the 2 slices; set --mesh.replica=2" in refusal


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_where_the_compiler_is_required_its_absence_is_a_failure(required, outcome, monkeypatch):
    monkeypatch.setenv("CROPS_REQUIRE_TOOLS", required)
    monkeypatch.setattr(sys.modules[__name__], "libtpu_path", lambda: None)
    with pytest.raises(outcome, match="no libtpu"):
        compiler.__wrapped__()


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(InputError, match="v5litepod-16: is no topology; there are v4:AxBxC up to 12x16x16, v5e:AxB"):
        describe("v5litepod-16", 1)
    monkeypatch.setattr("crops_jax.runs.plan.libtpu_path", lambda: None)
    with pytest.raises(InputError, match="tpu-aot"):
        describe("v5e:4x4", 1)
    with pytest.raises(InputError, match="needs --topology"):
        read_arguments(["--config", CONFIG])
    with pytest.raises(InputError, match="--out tests: is a folder"):
        read_arguments(["--config", CONFIG, "--topology", "v5e:4x4", "--out", "tests"])


def test_slices_are_replicas_unless_the_mesh_says_otherwise():
    arguments = ["--config", CONFIG, "--topology", "v5e:4x4", "--slices", "2"]
    assert read_arguments(arguments)[0].mesh.replica == 2
    experiment, topology, slices, out = read_arguments([*arguments, "--mesh.replica=4"])
    assert (experiment.mesh.replica, topology, slices, out) == (4, "v5e:4x4", 2, None)
