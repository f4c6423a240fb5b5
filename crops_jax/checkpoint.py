"""Checkpoints: Orbax steps, each sealed with a checksum list, restored onto whatever mesh is there.

Orbax writes a step atomically but reads a flipped bit in silence; the checksum list catches it, and the previous good
step is used with a warning that names both.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from crops_jax.artifacts import file_facts
from crops_jax.errors import InputError

PyTree = Any
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of every option that read_only implies


@dataclass
class Checkpoints:
    """The checkpoints of one run, below `folder/checkpoints`; `keep` newest steps stay."""

    folder: Path
    keep: int = 2
    read_only: bool = False

    def __post_init__(self):
        self.folder = Path(self.folder)
        self._steps = (self.folder / "checkpoints").resolve()
        self._sums = (self.folder / "checksums").resolve()
        if not self.read_only:
            self._steps.mkdir(parents=True, exist_ok=True)
            self._sums.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._steps,
            # Named here, because a process that only reads has saved nothing to learn the handler from.
            item_handlers=ocp.PyTreeCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if self.read_only else self.keep,
                create=not self.read_only,
                read_only=self.read_only,
                # A step is sealed right after it is written, so that no step is ever seen unsealed.
                enable_async_checkpointing=False,
            ),
        )

        if not self.read_only:  # a kill between Orbax's commit and the seal: the step is written again
            for step in set(self._manager.all_steps()) - set(self.steps()):
                self._manager.delete(step)

    def steps(self) -> list[int]:
        """Steps that are whole and sealed, oldest first."""
        return [s for s in sorted(self._manager.all_steps()) if (self._sums / f"{s}.json").is_file()]

    def save(self, step: int, state: PyTree) -> None:
        """Writes `state` as `step` and seals it; returns when both are on disk."""
        self._manager.save(step, args=ocp.args.PyTreeSave(_named_leaves(state)), force=True)
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            self._seal(step)

    def _seal(self, step: int) -> None:
        root = self._steps / str(step)
        facts = [vars(file_facts(p, root)) for p in sorted(root.rglob("*")) if p.is_file()]
        part = self._sums / f".{step}.part"
        part.write_text(json.dumps(facts, indent=1))
        part.rename(self._sums / f"{step}.json")
        for old in self._sums.glob("*.json"):
            if not (self._steps / old.stem).exists():
                old.unlink()

    def restore(self, abstract_state: PyTree, part: str = "") -> tuple[int, PyTree]:
        """(step, state): the newest good step as a tree like `abstract_state`.

        Args:
          abstract_state: a tree of `jax.ShapeDtypeStruct` with concrete shardings.
          part: the attribute of the saved state that `abstract_state` describes, for instance "model" alone;
            nothing else is read.

        Raises:
          InputError: there is no checkpoint, none is undamaged, or its arrays are not those of this model; the
            message lists every array that differs.
        """
        damage: dict[int, str] = {}
        for candidate in self.steps()[::-1]:
            found = self._damage(candidate)
            if not found:
                self._pass_over(damage, candidate)
                return candidate, self._read(candidate, abstract_state, part)
            damage[candidate] = f"checkpoint step {candidate} is damaged ({found[0]})"
        nothing = "holds no complete checkpoint; run crops_jax.train first"
        raise InputError(str(self._steps), list(damage.values()) or nothing)

    def _pass_over(self, damage: dict[int, str], good: int) -> None:
        """Says which steps are damaged, and removes them where this run will write them again."""
        if damage:
            print(f"warning: {'; '.join(damage.values())}; using step {good}", file=sys.stderr)
        if not self.read_only:
            for step in damage:
                self._manager.delete(step)

    def _damage(self, step: int) -> list[str]:
        root, sums = self._steps / str(step), self._sums / f"{step}.json"
        if not sums.is_file():
            return [f"no checksum list for step {step}"]
        problems = []
        for entry in json.loads(sums.read_text()):
            file = root / entry["path"]
            if not file.is_file():
                problems.append(f"{entry['path']} is missing")
            elif vars(file_facts(file, root)) != entry:
                problems.append(f"{entry['path']} has changed since it was written")
        return problems

    def _read(self, step: int, abstract_state: PyTree, part: str) -> PyTree:
        prefix = f"{part}." if part else ""
        wanted = {prefix + name: leaf for name, leaf in _named_leaves(abstract_state).items()}
        tree = self._manager.item_metadata(step).tree
        saved = {name: tuple(leaf.shape) for name, leaf in tree.items() if name.startswith(prefix)}
        problems = [f"{n}: not in the checkpoint" for n in wanted if n not in saved]
        problems += [f"{n}: in the checkpoint only" for n in saved if n not in wanted]
        problems += [
            f"{n}: {saved[n]} in the checkpoint, {tuple(leaf.shape)} in this model"
            for n, leaf in wanted.items()
            if n in saved and tuple(leaf.shape) != saved[n]
        ]
        if problems:
            raise InputError(f"{self._steps / str(step)} was written by another model config", problems)
        layout = ocp.checkpoint_utils.construct_restore_args(wanted)
        request = ocp.args.PyTreeRestore(wanted, restore_args=layout, partial_restore=bool(part))
        leaves = self._manager.restore(step, args=request)
        structure = jax.tree.structure(abstract_state)
        return jax.tree.unflatten(structure, [leaves[name] for name in wanted])

    def close(self) -> None:
        """Waits for pending work."""
        self._manager.close()


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by dotted path, in tree order: a layout that does not depend on module classes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}
