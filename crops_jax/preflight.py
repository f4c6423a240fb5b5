"""`python -m crops_jax.preflight --config FILE [--section.field=value ...]`: does a long run have what it needs?

Started like the training run, on all its hosts at once. Every check runs in every process; the first process prints
one table with all problems of all processes, and all end with the same exit code: 0, or 2 if there is a problem. A
process that waits too long for a disk or for another process ends with the stuck code.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment, to_json
from crops_jax.errors import EXIT_BAD_INPUT, InputError, run_command
from crops_jax.parallel import processes
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import abstract_mesh, make_mesh
from crops_jax.runs.inputs import train_inputs
from crops_jax.runs.tasks import task_of
from crops_jax.runs.versions import check_versions
from crops_jax.training.checkpoint import step_folders
from crops_jax.training.watchdog import Watchdog

_DEVICE_FILES = {"tpu": ("/dev/accel0", "/dev/vfio/0"), "cuda": ("/dev/nvidia0",)}
_ALL_REDUCE_S = 120.0


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    ok: bool
    said: str  # what was found, or what the problems are


def versions(experiment: Experiment) -> str:
    """Python and the packages of training."""
    return check_versions()


def devices(experiment: Experiment) -> str:
    """Number, kind and memory of the devices; an accelerator that JAX does not use is a problem."""
    unwanted_cpu = jax.default_backend() == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu"
    for extra, files in _DEVICE_FILES.items():
        if unwanted_cpu and (present := [file for file in files if Path(file).exists()]):
            raise InputError(present[0], f"is there, but JAX runs on cpu: pip install -c constraints.txt '.[{extra}]'")
    per_process = {len(jax.local_devices(process_index=p)) for p in range(jax.process_count())}
    if len(per_process) > 1:
        raise InputError("devices", f"{sorted(per_process)} in a process; all processes need the same number")
    one = jax.local_devices()[0]
    memory = (one.memory_stats() or {}).get("bytes_limit")
    size = f" of {memory / 1e9:.1f} GB" if memory else ""
    return f"{jax.device_count()} x {one.device_kind}{size}, processes: {jax.process_count()}"


def mesh(experiment: Experiment) -> str:
    """Whether the mesh fits the devices and their slices, the model's heads and widths, and the batch."""
    fitted = make_mesh(experiment.mesh)
    task_of(experiment).check(fitted)
    return ", ".join(f"{axis} {size}" for axis, size in fitted.shape.items())


def train_folder(experiment: Experiment) -> str:
    """Write access, room for the checkpoints, and that all processes see the same folder."""
    folder = experiment.arm_folder("train")
    size = _checkpoint_bytes(experiment)
    # The next one is written before the oldest goes, and the best one may be older than all that are kept.
    count = experiment.train.keep + 1 + (experiment.validation.select != "last")
    mark = folder / f".preflight-{jax.process_index()}"
    try:
        processes.together(partial(_touch, mark))
        absent = [i for i in range(jax.process_count()) if not mark.with_name(f".preflight-{i}").exists()]
        processes.wait_for_all("marks were looked at")
    finally:
        with suppress(OSError):
            mark.unlink()
    if absent:
        raise InputError(str(folder), f"is not the folder of process {absent[0]}; put workdir on shared storage")
    # What a resumed run finds there makes room for what it writes.
    files = [file for step in step_folders(folder) for file in step.rglob("*") if file.is_file()]
    free, there = shutil.disk_usage(folder).free, sum(file.stat().st_size for file in files)
    if free + there < count * size:
        taken = f" beside {there / 1e9:.1f} GB of checkpoints" if there else ""
        needed = f"{count} checkpoints take {count * size / 1e9:.1f} GB"
        raise InputError(str(folder), f"{free / 1e9:.1f} GB free{taken}, {needed}")
    return f"{folder}, {size / 1e9:.2f} GB a checkpoint"


def _checkpoint_bytes(experiment: Experiment) -> int:
    """All leaves of the state: parameters, and the optimiser's moments of those that are trained."""
    one = abstract_mesh(MeshConfig(), 1)  # sizes do not depend on the devices, which may be too few
    with jax.sharding.use_abstract_mesh(one):
        state = task_of(experiment).abstract_state(one)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _touch(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise InputError(str(path.parent), f"cannot be written ({error.strerror})") from None


def all_reduce(experiment: Experiment) -> str:
    """One number from every device, summed over all of them."""
    n = jax.device_count()
    line = Mesh(np.array(jax.devices()), ("devices",))
    each, everywhere = NamedSharding(line, jax.P("devices")), NamedSharding(line, jax.P())
    numbers = jax.make_array_from_callback((n,), each, lambda index: np.arange(n, dtype=np.int32)[index])
    total = int(jax.jit(jnp.sum, out_shardings=everywhere)(numbers))
    if total != n * (n - 1) // 2:
        raise InputError("all-reduce", f"0 + ... + {n - 1} over {n} devices gave {total}: a device or a link is broken")
    return f"0 + ... + {n - 1} = {total}"


def step(experiment: Experiment) -> str:
    """All that `train` makes ready before it begins: the held-out groups, packages, the step itself, traced."""
    train_inputs(experiment)
    return f"{experiment.input.batch_queries} query groups at most"


def checks(experiment: Experiment) -> dict[str, Callable[[], str]]:
    """All of them by name, in the order of the table; what a run reads is its task's to check."""
    own = (versions, devices, mesh)
    later = (train_folder, all_reduce)
    named = {check.__name__: partial(check, experiment) for check in own}
    return named | task_of(experiment).checks() | {check.__name__: partial(check, experiment) for check in later}


def run(experiment: Experiment) -> list[Check]:
    """All checks, in all processes; ends with the same list in each of them."""
    found = {"config": sha256(repr(to_json(experiment)).encode()).hexdigest()[:12]}
    done = [Check("config", True, f"{experiment.name}, {found['config']}")]

    def make(name: str, check: Callable[[], str]) -> None:
        try:
            found[name] = processes.together(check)
            done.append(Check(name, True, found[name]))
        except InputError as error:
            done.append(Check(name, False, str(error)))
        dog.step_finished()

    stacks, slow_s = experiment.arm_folder("train") / "preflight_stacks.txt", experiment.train.stuck_slow_s
    with Watchdog(stacks, times=1, floor_s=_ALL_REDUCE_S, slow_s=slow_s) as dog:
        for name, check in checks(experiment).items():
            with dog.slow_work() if name != "all_reduce" else nullcontext():  # weights may have to be fetched first
                make(name, check)
        if all(check.ok for check in done):  # else it would say the same once more
            with dog.slow_work():
                make("step", partial(step, experiment))
    try:
        # The free memory of equal devices differs a little; their kind and number all processes know anyway.
        processes.require_same({name: said for name, said in found.items() if name != "devices"})
    except InputError as error:
        done.append(Check("same", False, str(error)))
    return done


def table(checks: list[Check]) -> str:
    """One line a check; further problems below it."""
    return "\n".join(
        f"{'ok' if check.ok else 'problem':<9}{check.name:<14}" + check.said.replace("\n", f"\n{'':21}")
        for check in checks
    )


def main() -> None:
    """Checks the experiment of the command line."""
    processes.initialize()
    with processes.noticing_lost_peers():
        experiment = processes.together(partial(from_command_line, "preflight"))
        checks = run(experiment)
    if processes.is_first():
        print(table(checks), flush=True)
    if not all(check.ok for check in checks):
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    run_command(main, processes.leave)
