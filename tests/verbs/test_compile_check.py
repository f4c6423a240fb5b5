"""What compile_check asks the compiler, prints, writes and leaves with; the compiler itself is stood in for."""

import json
from dataclasses import replace

import pytest
from places import CONFIGS

from crops_jax import compile_check
from crops_jax.cost.collectives import Collective
from crops_jax.cost.roofline import Roofline
from crops_jax.cost.traffic import Traffic
from crops_jax.errors import InputError
from crops_jax.runs.plan import Memory, Plan

GIB = 2**30
PLAN = Plan(
    topology="v5e:4x4", slices=2, devices=32, chip="TPU v5e", hbm_bytes=16 * GIB, mesh={"replica": 2, "data": 16},
    remat="full", model_parameters=1234567, batch={"queries": 64, "documents": 512}, dtype="bfloat16", fits=True,
    memory=Memory(arguments=2 * GIB, outputs=2 * GIB, aliased=GIB, temporaries=4 * GIB, code=GIB), refusal="",
    largest=[], replicated=["a large one"], analytic_flops=200, compiled_flops=300, lower_s=1.0, compile_s=2.0,
    collectives=[Collective("all-gather", "layers.project", "bf16", 6, 3 * 2**20, True)],
    traffic=[Traffic("layers.rms_norm", "bf16", (32, 512, 896), 5 * 10**9)], scores_bytes=10**9,
    roofline=Roofline(product_s=0.2, hbm_bytes=4 * 10**9, hbm_s=0.3, link_bytes=2 * 10**9, link_s=0.1,
                      slice_bytes=10**9, slice_s=0.32, model_s=0.16),
)  # fmt: skip


def run(plan, monkeypatch, *flags):
    asked = []
    monkeypatch.setattr(compile_check, "compile_plan", lambda *args: asked.append(args) or plan)
    config = str(CONFIGS / "demo.py")
    monkeypatch.setattr("sys.argv", ["compile_check", "--config", config, "--topology", "v5e:4x4", *flags])
    compile_check.main()
    return asked


def test_a_plan_that_fits_is_printed_and_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "plan.json"
    ((experiment, topology, slices),) = run(PLAN, monkeypatch, "--slices=2", "--out", str(out), "--model.remat=full")
    assert (topology, slices, experiment.mesh.replica, experiment.model.remat) == ("v5e:4x4", 2, 2, "full")
    said = capsys.readouterr().out
    for told in ("2 x v5e:4x4: 32 TPU v5e devices, mesh 2 replica x 16 data", "1,234,567 parameters, bfloat16",
                 "64 queries, 512 documents", "FITS: 8.00 GiB of 16.00 GiB", "temporaries 4.00 GiB",
                 "1.500 of the analytic 200 (remat full computes again)", "a large one",
                 "products                  200.0 ms   0.00 TFLOP at 1.97e+14/s",
                 "memory                    300.0 ms   4.00 GB at 819 GB/s",
                 "links                     100.0 ms   2.00 GB at 50 GB/s a link and direction",
                 "links between slices      320.0 ms   1.00 GB at 3.12 GB/s",
                 "bound by links between slices: 320.0 ms a step at least, 0.500 of the peak at most",
                 "attention's scores: 1.00"):  # fmt: skip
        assert told in said, told
    (line,) = [line for line in said.splitlines() if "layers.rms_norm" in line]
    assert line.split() == ["layers.rms_norm", "bf16[32,512,896]", "5.00"]
    (line,) = [line for line in said.splitlines() if "layers.project" in line]
    assert line.split() == ["all-gather", "layers.project", "bf16", "slices", "6", "3.00"]
    written = json.loads(out.read_text())
    assert (written["experiment"], written["peak_bytes"], written["of_hbm"]) == (experiment.name, 8 * GIB, 0.5)
    assert (written["bound"], written["least_s"], written["of_peak"]) == ("links between slices", 0.32, 0.5)
    assert written["flops_ratio"] == 1.5 and written["collectives"][0]["count"] == 6


def test_a_plan_that_does_not_fit_is_written_too_and_refused(tmp_path, monkeypatch, capsys):
    refused = replace(
        PLAN, fits=False, memory=None, compiled_flops=None, roofline=None, refusal="20 GiB wanted", largest=["f32[9]"]
    )
    out = tmp_path / "plan.json"
    with pytest.raises(InputError, match="does not fit"):
        run(refused, monkeypatch, "--out", str(out))
    said = capsys.readouterr().out
    assert "DOES NOT FIT into 16.00 GiB a device: 20 GiB wanted" in said and "f32[9]" in said
    assert json.loads(out.read_text())["fits"] is False and "peak_bytes" not in json.loads(out.read_text())


def test_slices_have_to_be_a_number(monkeypatch):
    with pytest.raises(InputError, match="--slices: 'two' is no whole number"):
        run(PLAN, monkeypatch, "--slices", "two")
