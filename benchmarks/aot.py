"""`make aot`: compiles the train step of the 0.5B, 1.5B and 7B models for TPU topologies, without a TPU.

Writes one JSON file a case (`crops_jax.compile_check`) and two tables into build/aot: `table.md`, what a device holds
and sends, and `roofline.md`, what bounds a step. A case that fits, although it is said not to, or the other way round,
that is bound by something else than is said, or that does not keep what `plan_checks.py` asks of it, makes the exit
code 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from plan_checks import problems
from tqdm import tqdm

from crops_jax.command_line import load_file
from crops_jax.models.config import Qwen2Config

OUT = Path("build/aot")


@dataclass(frozen=True)
class Case:
    size: str  # the config's model
    topology: str
    slices: int
    shards: int  # devices that the batch is split over
    doc_rows: int  # a device, of 512 token slots
    flags: tuple[str, ...] = ()
    fits: bool = True
    bound: str = "products"  # what takes a step longest (`crops_jax.cost.roofline`)

    @property
    def name(self) -> str:
        flags = "".join(f"_{flag.split('.')[-1].replace('=', '')}" for flag in self.flags)
        return f"{self.size}_{self.slices}x{self.topology.replace(':', '_')}_{self.doc_rows}rows{flags}"

    @property
    def config(self) -> str:
        return f"configs/crops_qwen2_5_{self.size}.py"

    @property
    def backbone(self) -> Qwen2Config:
        return load_file(self.config).model.backbone

    def command(self) -> list[str]:
        rows = self.doc_rows * self.shards
        batch = [
            f"--input.shards={self.shards}",
            f"--input.batch_queries={max(1, self.doc_rows * 5 // 8) * self.shards}",
            f"--input.packing.doc_rows={rows}",
            f"--input.packing.query_rows={max(1, self.doc_rows // 16) * self.shards}",
        ]
        where = ["--topology", self.topology, "--slices", str(self.slices), "--out", str(OUT / f"{self.name}.json")]
        return [sys.executable, "-m", "crops_jax.compile_check", "--config", self.config, *where, *batch, *self.flags]


HALF, TWICE = "--mesh.replica=2", "--mesh.replica=4"  # width 896 divides over 128 devices, not over 256
NO_REMAT = "--model.remat=none"
CASES = (
    Case("0_5b", "v5e:4x4", 1, 16, 32),
    Case("0_5b", "v5e:4x4", 1, 16, 8, (NO_REMAT,)),
    Case("0_5b", "v5e:16x16", 1, 256, 32, (HALF,)),
    Case("0_5b", "v5p:2x2x2", 1, 8, 64),
    Case("0_5b", "v5p:4x4x4", 1, 64, 64),
    Case("0_5b", "v6e:4x4", 1, 16, 64, bound="memory"),
    Case("0_5b", "v6e:16x16", 1, 256, 64, (HALF,), bound="memory"),
    Case("0_5b", "v5e:16x16", 2, 512, 32, (TWICE,)),
    Case("1_5b", "v5e:4x4", 1, 16, 16),
    Case("1_5b", "v5e:16x16", 1, 256, 16),
    Case("1_5b", "v5p:2x2x2", 1, 8, 64),
    Case("1_5b", "v6e:16x16", 1, 256, 32, bound="memory"),
    Case("1_5b", "v5e:16x16", 2, 512, 16),
    Case("7b", "v5e:4x4", 1, 16, 1, bound="links"),
    Case("7b", "v5e:4x4", 1, 16, 32, fits=False),
    Case("7b", "v5e:16x16", 1, 256, 8),
    Case("7b", "v5p:2x2x2", 1, 8, 32),
    Case("7b", "v6e:16x16", 1, 256, 32),
    Case("7b", "v5e:16x16", 2, 512, 8),
)


def row(case: Case, plan: dict) -> str:
    """A line of the table."""
    gib = 2**30
    start = f"| {case.size} | {case.slices} x {case.topology} | {' x '.join(map(str, plan['mesh'].values()))} "
    start += f"| {plan['batch']['queries']:,} | {plan['batch']['token_slots'] // plan['devices']:,} | {plan['remat']} "
    if not plan["fits"]:
        return start + f"| no: {plan['refusal'].split(', ')[-1]} | | | | | | {plan['compile_s']:.0f} |"
    memory = plan["memory"]
    moved = {kind: sum(c["bytes"] for c in plan["collectives"] if c["kind"] == kind and not c["between_slices"])
             for kind in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")}  # fmt: skip
    between = sum(c["bytes"] for c in plan["collectives"] if c["between_slices"])
    return start + (
        f"| {memory['arguments'] / gib:.2f} + {memory['temporaries'] / gib:.2f} = {plan['peak_bytes'] / gib:.2f} "
        f"({plan['of_hbm']:.0%}) | {plan['flops_ratio']:.3f} | "
        + " | ".join(f"{size / gib:.2f}" for size in moved.values())
        + f" | {between / gib:.2f} | {plan['compile_s']:.0f} |"
    )


HEADER = """\
GiB on one device: arguments + temporaries = peak (share of HBM), then bytes of a step's collectives by kind, within a
slice and between slices. FLOPs: compiled / analytic. Mesh: replica x data [x ring or depth] x tensor.

| model | topology | mesh | queries | token slots a device | remat | memory | FLOPs | all-gather | reduce-scatter | all-reduce | all-to-all | between slices | compile s |
|:--|:--|:--|--:|--:|:--|:--|--:|--:|--:|--:|--:|--:|--:|"""  # noqa: E501


BOUNDS = """\
What a step of one device takes at the chip's published rates, each alone, in ms: its products, with what remat computes
again; what it moves through memory; what it sends. The longest is the bound; at best the model's own products have this
share of the chip's peak. GB: through memory, and of a step's scores of attention.

| model | topology | token slots a device | remat | products | memory | links | between slices | bound by | ms | of peak | GB | scores |
|:--|:--|--:|:--|--:|--:|--:|--:|:--|--:|--:|--:|--:|"""  # noqa: E501


def bounds(case: Case, plan: dict) -> str:
    """A line of the table of bounds."""
    r = plan["roofline"]
    times = [r[name] for name in ("product_s", "hbm_s", "link_s", "slice_s")]
    if case.slices == 1:
        times[3] = None
    return (
        f"| {case.size} | {case.slices} x {case.topology} | {plan['batch']['token_slots'] // plan['devices']:,} "
        f"| {plan['remat']} | " + " | ".join("" if t is None else f"{1e3 * t:.0f}" for t in times)
        + f" | {plan['bound']} | {1e3 * plan['least_s']:.0f} | {plan['of_peak']:.3f} | {r['hbm_bytes'] / 1e9:.1f} "
        f"| {plan['scores_bytes'] / 1e9:.1f} |"
    )  # fmt: skip


def main() -> None:
    """Compiles every case (or those whose name contains an argument) and writes the tables."""
    chosen = [case for case in CASES if all(word in case.name for word in sys.argv[1:])]
    OUT.mkdir(parents=True, exist_ok=True)
    rows, limits, wrong = [HEADER], [BOUNDS], []
    for case in tqdm(chosen, desc="ahead-of-time compiles", unit="case"):
        path = OUT / f"{case.name}.json"
        path.unlink(missing_ok=True)
        done = subprocess.run(case.command(), capture_output=True, text=True)
        (OUT / f"{case.name}.txt").write_text(done.stdout + done.stderr)
        if not path.is_file():
            wrong.append(f"{case.name}: {done.stderr.strip().splitlines()[-1]}")
            continue
        plan = json.loads(path.read_text())
        rows.append(row(case, plan))
        if plan["fits"] != case.fits:
            wrong.append(f"{case.name}: {'fits' if plan['fits'] else 'does not fit: ' + plan['refusal']}")
        if plan["fits"]:
            limits.append(bounds(case, plan))
            if plan["bound"] != case.bound:
                wrong.append(f"{case.name}: bound by {plan['bound']}, not by {case.bound}")
            wrong += [f"{case.name}: {problem}" for problem in problems(plan, case.backbone)]
    for name, lines in (("table.md", rows), ("roofline.md", limits)):
        (OUT / name).write_text("\n".join(lines) + "\n")
    print("\n".join([*rows, "", *limits, "", *(f"WRONG {line}" for line in wrong)]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
