"""Checkpoints: Orbax steps, each sealed with a manifest, restored onto whatever mesh and processes are there.

Orbax writes a step in the background and commits it with a rename, but reads a flipped bit in silence. So a step counts
only once its manifest (`artifacts.manifest.seal`: every file's checksums, the run's config) is in it, and that is
checked before the step is used. A run that goes on passes over a damaged step, with a warning that names it and the
step used instead, and makes it again; what reads a run that is finished does not: vectors of one step do not go with
towers of another.
The manifest also holds the step's score, where it was evaluated: so the steps themselves say which one is the best.

Every process writes its own part of a step and hashes it, and checks its share of one that is read; the first one seals
and deletes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import jax
import orbax.checkpoint as ocp

from crops_jax.artifacts.manifest import MANIFEST, FileFacts, file_facts, own_files, read_manifest, seal, verify
from crops_jax.errors import MENDS, InputError
from crops_jax.parallel import processes

PyTree = Any
for _library in ("absl", "asyncio"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)  # what Orbax has to say it raises as well
_STEP = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")  # Orbax writes under a name of its own and renames
_POLL_S = 0.05
_NO_ROOM = {os.strerror(code): MENDS[code] for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
BEST_STEP = "best_step"  # in the counts of a finished run: which step has the highest score


class Checkpoints:
    """The checkpoints of one run, below `folder/checkpoints`. Use as a context manager."""

    def __init__(self, folder: Path, keep: int = 2, read_only: bool = False, config: Any = None):
        """Removes what a kill left, unless `read_only`, which changes nothing in the folder.

        Args:
          keep: newest sealed steps that stay; the best one always does.
          config: what made these states, JSON-able; goes into every step's manifest.
        """
        self.folder = Path(folder)
        self._root = (self.folder / "checkpoints").resolve()
        self._keep, self._read_only, self._config = keep, read_only, config
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._sealer = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None
        self._room = 0  # bytes of the state that is being saved
        self._best: float | None = None
        if not read_only:
            processes.first(self._remove_unsealed)

    def __enter__(self) -> Checkpoints:
        self._told = sys.unraisablehook
        sys.unraisablehook = partial(_tell_unless_echo, self._told)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
                sys.unraisablehook = self._told  # after an error its echoes may still come
        finally:
            self._sealer.shutdown()  # after an error: a save that runs is finished, by this process alone
            self._orbax.close()

    def steps(self) -> list[int]:
        """Steps that are whole and sealed, oldest first; the first process's answer in all of them."""
        return processes.first(self._sealed)

    def improves(self, score: float | None) -> bool:
        """Whether a step of this score would be the best of the run."""
        return score is not None and (self._best is None or score > self._best)

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Starts to write `state` as `step`. Returns as soon as the arrays may be donated again.

        Args:
          score: by which the best step is told, if this one was evaluated.

        Raises:
          InputError: there was no room for the save before this one.
        """
        self.wait()
        self._best = score if self.improves(score) else self._best
        leaves = _named_leaves(state)
        self._room = sum(leaf.nbytes for leaf in leaves.values())
        self._orbax.save(self._root / str(step), args=ocp.args.PyTreeSave(leaves), force=True)
        self._saving = self._sealer.submit(self._finish, step, score)

    def check(self) -> None:
        """Raises what `wait` would if the last save has failed already, and returns at once where it has not."""
        if self._saving is not None and self._saving.done() and self._saving.exception():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk and sealed, in all processes.

        Raises:
          InputError: there was no room for it; says which step is whole.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.result()
            processes.wait_for_all("checkpoint sealed")
        except Exception as error:
            reason = next((words for words in _NO_ROOM if words in str(error)), None)
            if reason is None:
                raise
            whole = self._sealed()
            kept = f"step {whole[-1]} is whole" if whole else "no earlier step was saved"
            free = shutil.disk_usage(self._root).free
            raise InputError(
                str(self._root),
                f"a step could not be saved ({reason}): it takes {self._room:,} bytes, {free:,} are free; {kept}; "
                f"{_NO_ROOM[reason]} and run the same command again",
            ) from None

    def _finish(self, step: int, score: float | None) -> None:
        self._orbax.wait_until_finished()
        folder = self._root / str(step)
        self._write_facts(folder)
        if not processes.is_first():
            return
        counts = {"step": step, "score": score}
        seal(folder, kind="checkpoint", config=self._config, inputs={}, counts=counts, facts=self._all_facts(folder))
        kept = {*self._sealed()[-self._keep :], *self._best_first()[:1]}
        for old in {*self._sealed()} - kept:
            self._remove(old)

    def _write_facts(self, folder: Path) -> None:
        """Hashes what this process wrote, which still lies in its memory, and says so beside the step.

        Each does so on its own: this runs while the main thread uses the collectives.
        """
        while not folder.exists():  # the first process renames it
            sleep(_POLL_S)
        mine = [file for file in own_files(folder) if _writer(file.relative_to(folder)) == jax.process_index()]
        told = self._facts(folder, jax.process_index())
        part = told.with_suffix(".part")
        part.write_text(json.dumps([vars(file_facts(file, folder)) for file in mine]))
        part.rename(told)

    def _all_facts(self, folder: Path) -> list[FileFacts]:
        """Those of all processes, once they are there."""
        found: list[FileFacts] = []
        for process in range(jax.process_count()):
            told = self._facts(folder, process)
            while not told.exists():
                sleep(_POLL_S)  # the watchdog ends a run in which this takes for ever
            found += [FileFacts(**facts) for facts in json.loads(told.read_text())]
            told.unlink()
        return found

    def _facts(self, folder: Path, process: int) -> Path:
        return folder.with_name(f".{folder.name}.facts-{process}.json")

    def _sealed(self) -> list[int]:
        return sealed_steps(self.folder)

    def _scores(self) -> dict[int, float]:
        """Step -> the value by which it is selected, of the sealed steps that have one."""
        scores = {step: self._score(step) for step in self._sealed()}
        return {step: score for step, score in scores.items() if score is not None}

    def _score(self, step: int) -> float | None:
        try:
            return read_manifest(self._root / str(step))["counts"].get("score")
        except InputError:  # damaged: said where the step is about to be used
            return None

    def _best_first(self) -> list[int]:
        """Steps that have a score; of equal ones the later first."""
        scores = self._scores()
        return sorted(scores, key=lambda step: (-scores[step], -step))

    def best_step(self) -> int | None:
        """The step of the highest score; None where none has one."""
        return next(iter(self._best_first()), None)

    def _remove(self, step: int) -> None:
        (self._root / str(step) / MANIFEST).unlink()  # first, so that half a step never counts
        shutil.rmtree(self._root / str(step))

    def _remove_unsealed(self) -> None:
        """What a kill left: a step that was being written, sealed or removed. Other things are not ours."""
        self._root.mkdir(parents=True, exist_ok=True)
        whole = {str(step) for step in self._sealed()}
        for left in step_folders(self.folder):
            if left.name not in whole:
                shutil.rmtree(left)
        for left in self._root.glob(".*.facts-*"):
            left.unlink()

    def restore(
        self, abstract_state: PyTree, part: str = "", best: bool = False, step: int | None = None
    ) -> tuple[int, PyTree]:
        """(step, state): the newest good step, or the best one, or a given one, as a tree like `abstract_state`.

        Args:
          abstract_state: a tree of `jax.ShapeDtypeStruct` with concrete shardings.
          best: the step of the highest score goes first, steps without a score last.
          part: the attribute of the saved state that `abstract_state` describes, for instance "model" alone;
            nothing else is read.
          step: this one and no other.

        Raises:
          InputError: there is no checkpoint, none is undamaged, or, where nothing may be changed, not the one that is
            asked for; or its arrays are not those of this model; the message lists every array that differs.
        """
        step = self._first_good(best, step)
        self._best = processes.first(lambda: max(self._scores().values(), default=None))
        return step, self._read(step, abstract_state, part)

    def _first_good(self, best: bool, step: int | None) -> int:
        gone = processes.first(partial(self._gone, best))
        damage = {n: f"checkpoint step {n} is gone" for n in gone if step in (None, n)}
        candidates = processes.first(lambda: [*(self._best_first() if best else []), *self._sealed()[::-1]])
        candidates = candidates if step is None else [step]
        for candidate in dict.fromkeys(candidates):
            problems = processes.gathered(self._problems(candidate))
            if problems:
                damage[candidate] = f"checkpoint step {candidate} is damaged ({problems[0]})"
                continue
            if self._read_only and damage:  # what is made of a run is made of one step
                again = "discard the run and train again: --train.fresh=True" if best else (
                    "run crops_jax.train, which makes the last step of a run again")  # fmt: skip
                mend = f"step {candidate} is whole, but not what the run selects; put that back from a copy, or {again}"
                raise InputError(str(self._root), [*damage.values(), mend])
            if damage and processes.is_first():
                print(f"warning: {'; '.join(damage.values())}; using step {candidate}", file=sys.stderr)
            if not self._read_only:  # this run will write them again
                processes.first(lambda: [self._remove(step) for step in damage if step not in gone])
            return candidate
        nothing = ["holds no complete checkpoint; run crops_jax.train first"]
        mend = "put it back from a copy, or discard the run and train again: --train.fresh=True"
        raise InputError(str(self._root), [*damage.values(), mend] if damage else nothing)

    def _gone(self, best: bool) -> list[int]:
        """Steps that the manifest of a finished run names, that are there no more, and that would go before others."""
        try:
            manifest = read_manifest(self.folder)
        except InputError:  # the run goes on, or is its first
            return []
        files = [Path(entry["path"]) for entry in manifest["files"]]
        steps = {int(f.parts[1]) for f in files if len(f.parts) == 3 and f.parts[0] == "checkpoints"
                 and f.name == MANIFEST and f.parts[1].isdecimal()}  # fmt: skip
        there = self._sealed()
        chosen = manifest["counts"].get(BEST_STEP) if best else None  # versions before 0.9.8 did not write it
        return sorted(n for n in steps - {*there}
                      if (n == chosen if chosen is not None else n > max(there, default=-1)))  # fmt: skip

    def _problems(self, step: int) -> list[str]:
        """What is wrong with this process's share of a step's files."""
        try:
            verify(self._root / str(step), share=(jax.process_index(), jax.process_count()))
        except InputError as error:
            return error.problems
        return []

    def _read(self, step: int, abstract_state: PyTree, part: str) -> PyTree:
        folder = self._root / str(step)
        prefix = f"{part}." if part else ""
        wanted = {prefix + name: leaf for name, leaf in _named_leaves(abstract_state).items()}
        tree = self._orbax.metadata(folder).item_metadata.tree
        saved = {name: tuple(leaf.shape) for name, leaf in tree.items() if name.startswith(prefix)}
        problems = [f"{n}: not in the checkpoint" for n in wanted if n not in saved]
        problems += [f"{n}: in the checkpoint only" for n in saved if n not in wanted]
        problems += [
            f"{n}: {saved[n]} in the checkpoint, {tuple(leaf.shape)} in this model"
            for n, leaf in wanted.items()
            if n in saved and tuple(leaf.shape) != saved[n]
        ]
        if problems:
            raise InputError(f"{folder} was written by another model config", problems)
        layout = ocp.checkpoint_utils.construct_restore_args(wanted)
        request = ocp.args.PyTreeRestore(wanted, restore_args=layout, partial_restore=bool(part))
        leaves = self._orbax.restore(folder, args=request)
        structure = jax.tree.structure(abstract_state)
        return jax.tree.unflatten(structure, [leaves[name] for name in wanted])


def _tell_unless_echo(tell: Callable[[Any], None], unraisable: Any) -> None:
    """Tells what no caller could be told, but for the echoes of a failed save: after its first write that failed, the
    others report to an event loop that Orbax has closed, each with a traceback.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        tell(unraisable)


def _writer(file: Path) -> int:
    """The process that wrote a file of a step: those outside the processes' own folders are the first one's."""
    own = re.fullmatch(r"ocdbt\.process_(\d+)", file.parts[0])
    return int(own[1]) if own else 0


def step_folders(folder: Path) -> list[Path]:
    """The steps below a train folder, whole or not; what else lies beside them is somebody's own."""
    return [path for path in (folder / "checkpoints").glob("*") if _STEP.fullmatch(path.name)]


def sealed_steps(folder: Path) -> list[int]:
    """Those of a train folder that are whole, oldest first."""
    found = (path.parent.name for path in (folder / "checkpoints").glob(f"*/{MANIFEST}"))
    return sorted(int(name) for name in found if name.isdecimal())


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by dotted path, in tree order: a layout that does not depend on module classes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}
