"""`python -m crops_jax.compile_check --config FILE --topology v5e:16x16 [--slices 2] [--out FILE.json]`: what the train
step of an experiment takes on TPUs that are not there.

Prints, and writes as JSON, what the TPU compiler plans (`crops_jax.runs.plan`): memory of one device against its HBM,
FLOPs against the analytic count, the least time that products, memory and links need (`crops_jax.cost.roofline`), what
moves most through memory, collectives by kind, origin, count and bytes, compile time. `--slices n` is n such slices,
with a replica in each unless `--mesh.replica` says more. Exit code 2 where the step does not fit.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from crops_jax.command_line import from_command_line, number, take_option
from crops_jax.config import Experiment
from crops_jax.cost.chips import chip_named
from crops_jax.cost.traffic import Traffic
from crops_jax.errors import InputError, run_command
from crops_jax.losses.config import HInfoNCEConfig, LossConfig
from crops_jax.runs.plan import Plan, compile_plan

KNOBS = (
    "mesh: more devices; --mesh.data and --mesh.tensor split parameters, moments and activations",
    "batch: --input.batch_queries, --input.docs_per_query, --input.packing.doc_rows: fewer rows on a device",
    "remat: --model.remat=full keeps nothing of a layer but its input for the backward pass",
    "dtype: --model.dtype=bfloat16 halves activations and what travels",
    "gradient caching: --gradcache.doc_micro_batches and query_micro_batches, one part's activations at a time",
)
STREAMING = "loss: --loss.form=streaming never holds the B x N logits"


def report(plan: Plan, loss: LossConfig) -> str:
    """The plan for a reader, in lines.

    Args:
      loss: the experiment's, on which depends what can be turned where the step does not fit.
    """
    batch = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in plan.batch.items())
    mesh = " x ".join(f"{size} {name}" for name, size in plan.mesh.items())
    lines = [
        f"{plan.slices} x {plan.topology}: {plan.devices} {plan.chip} devices, mesh {mesh}",
        f"{plan.model_parameters:,} parameters, {plan.dtype}, remat {plan.remat}; a step of {batch}",
        f"lowered in {plan.lower_s:.0f} s, compiled in {plan.compile_s:.0f} s",
    ]
    told = _plan_lines(plan) if plan.fits else _refusal_lines(plan, loss)
    return "\n".join([*lines, *told, *_replicated_lines(plan)])


def _plan_lines(plan: Plan) -> list[str]:
    memory, flops, analytic = plan.memory, plan.compiled_flops, plan.analytic_flops
    lines = [
        "",
        f"FITS: {_gib(memory.peak)} of {_gib(plan.hbm_bytes)} on each device",
        f"  arguments {_gib(memory.arguments)}, temporaries {_gib(memory.temporaries)}, outputs that are no donated "
        f"arguments {_gib(memory.outputs - memory.aliased)}, code {_gib(memory.code)}",
        f"products: {flops:.4g} FLOPs a step, {flops / analytic:.3f} of the analytic {analytic:.4g}"
        + ("" if plan.remat == "none" else f" (remat {plan.remat} computes again)"),
        *_roofline_lines(plan),
        "",
        "collectives of a step on one device (loops multiplied out; bytes of the larger side)",
        f"  {'kind':<20}{'asked for by':<32}{'dtype':<7}{'over':<8}{'count':>7}{'MiB':>12}",
    ]
    for c in plan.collectives:
        over = "slices" if c.between_slices else "chips"
        lines.append(f"  {c.kind:<20}{c.origin:<32}{c.dtype:<7}{over:<8}{c.count:>7}{c.bytes / 2**20:>12.2f}")
    return lines


def _roofline_lines(plan: Plan) -> list[str]:
    r, chip = plan.roofline, chip_named(plan.chip)
    parts = [
        ("products", r.product_s, f"{plan.compiled_flops / plan.devices / 1e12:.2f} TFLOP at {chip.bf16_flops:.4g}/s"),
        ("memory", r.hbm_s, f"{r.hbm_bytes / 1e9:.2f} GB at {chip.hbm_rate / 1e9:,.0f} GB/s"),
        ("links", r.link_s, f"{r.link_bytes / 1e9:.2f} GB at {chip.links.rate / 1e9:,.0f} GB/s a link and direction"),
    ]
    if plan.slices > 1:
        rate = "a rate that is not published" if r.slice_s is None else f"{chip.links.slices / 1e9:,.2f} GB/s"
        parts.append(("links between slices", r.slice_s, f"{r.slice_bytes / 1e9:.2f} GB at {rate}"))
    return [
        "",
        f"a step of one {plan.chip} at its published rates",
        *[f"  {what:<22}{_ms(took)}   {told}" for what, took, told in parts],
        f"bound by {r.bound}: {1e3 * r.least_s:.1f} ms a step at least, {r.of_peak:.3f} of the peak at most",
        "",
        f"what moves most through memory, in GB (attention's scores: {plan.scores_bytes / 1e9:.2f})",
        *[f"  {t.origin:<32}{_array(t):<36}{t.bytes / 1e9:>9.2f}" for t in plan.traffic[:12]],
    ]


def _ms(seconds: float | None) -> str:
    return " " * 12 if seconds is None else f"{1e3 * seconds:9.1f} ms"


def _array(moved: Traffic) -> str:
    return f"{moved.dtype}[{','.join(map(str, moved.shape))}]"


def _refusal_lines(plan: Plan, loss: LossConfig) -> list[str]:
    knobs = (*KNOBS, STREAMING) if isinstance(loss, HInfoNCEConfig) else KNOBS  # the others have one form
    return [
        "",
        f"DOES NOT FIT into {_gib(plan.hbm_bytes)} a device: {plan.refusal}",
        "largest arrays on one device, of the state and of the step as it is written:",
        *[f"  {line}" for line in plan.largest],
        "knobs to turn:",
        *[f"  {knob}" for knob in knobs],
    ]


def _replicated_lines(plan: Plan) -> list[str]:
    return ["", "whole on every device:", *[f"  {line}" for line in plan.replicated]] if plan.replicated else []


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def read_arguments(argv: list[str]) -> tuple[Experiment, str, int, Path | None]:
    """(experiment, topology, slices, file to write or None) of the command line.

    Raises:
      InputError: no topology, slices that are no number, a folder in the place of the file, or what
        `command_line.from_command_line` raises.
    """
    topology, argv = take_option(argv, "--topology")
    slices, argv = take_option(argv, "--slices")
    out, argv = take_option(argv, "--out")
    experiment = from_command_line("compile_check", argv)
    if topology is None:
        raise InputError("python -m crops_jax.compile_check", "needs --topology, for instance --topology v5e:4x4")
    count = number("--slices", slices or "1", int)
    if count < 1:
        raise InputError(f"--slices {count}", "is below 1")
    if out and Path(out).is_dir():  # not after minutes of compiling
        raise InputError(f"--out {out}", "is a folder; name a file")
    if experiment.mesh.replica == 1:
        experiment = replace(experiment, mesh=replace(experiment.mesh, replica=count))
    return experiment, topology, count, Path(out) if out else None


def main() -> None:
    """Compiles, prints, writes."""
    experiment, topology, slices, out = read_arguments(sys.argv[1:])
    plan = compile_plan(experiment, topology, slices)
    print(report(plan, experiment.loss))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"experiment": experiment.name, **to_json(plan)}, indent=1) + "\n")
    if not plan.fits:
        raise InputError(f"{experiment.name} on {slices} x {topology}", "does not fit; turn one of the knobs above")


def to_json(plan: Plan) -> dict:
    """The plan with what follows from it."""
    peak = {"peak_bytes": plan.memory.peak, "of_hbm": plan.memory.peak / plan.hbm_bytes} if plan.memory else {}
    bound = plan.roofline and {"bound": plan.roofline.bound, "least_s": plan.roofline.least_s,
                               "of_peak": plan.roofline.of_peak}  # fmt: skip
    ratio = {"flops_ratio": plan.compiled_flops / plan.analytic_flops} if plan.compiled_flops else {}
    return {**asdict(plan), **peak, **ratio, **(bound or {})}


if __name__ == "__main__":
    run_command(main)
