"""What a run starts from: random weights, a Hugging Face checkpoint, or another run.

Of another run, its train folder stands for the weights that it selected, and one of its checkpoints
(`train/checkpoints/STEP`) for the weights of that step with the state of the optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from crops_jax.artifacts.manifest import MANIFEST
from crops_jax.config import Experiment, differences
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder, hf_import, sentence_folder
from crops_jax.models.config import FrozenConfig, SparseMlpConfig
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel.sharding import RULES, abstract_on
from crops_jax.runs.featurizer import featurizer_of, tokenizer_of
from crops_jax.runs.folder import read_run, run_of, trains_dual_encoder
from crops_jax.text.featurizer import fingerprint
from crops_jax.text.tokenizer import vocabulary
from crops_jax.training.checkpoint import Checkpoints

# What another run may have done otherwise: how it trained, not which arrays it has.
_FREE = (
    "init_from", "tau_init", "tau_min", "tau_max", "dtype", "remat", "unroll", "attention", "attention_scores",
    "frozen", "widths",
)  # fmt: skip
_POOLING = {"lasttoken": "last"}  # names that differ
_OF_OPTIMISER = ("frozen", "tie_towers")  # but with its optimiser: which arrays that has a state of


def check(experiment: Experiment) -> str:
    """What the run starts from, in words; looked at without loading it.

    Raises:
      InputError: the weights are missing, damaged, or of another architecture or tokeniser.
    """
    source = experiment.model.init_from
    if source is None:
        return "random, from the seed"
    folder, step = run_of(source)
    if folder is not None:
        _check_run(experiment, folder, step)
        return f"those of the run in {folder}" + (f", step {step}, and its optimiser" if step is not None else "")
    if isinstance(experiment.model.backbone, SparseMlpConfig):
        raise InputError(f"model.init_from = {source}", "is no run's train folder, and the sparse model has no other "
                         "weights to start from")  # fmt: skip
    place = hf_import.find_source(source)
    entries = hf_import.checked_entries(place, experiment.model.backbone)
    notes = [f"; note: {note}" for note in _read_otherwise(experiment, place)]
    return f"{source}, {len(entries)} tensors{''.join(notes)}"


def _read_otherwise(experiment: Experiment, folder: Path) -> Iterator[str]:
    """In what the run uses a folder's weights otherwise than the folder itself says: it may be meant."""
    if (folder / "tokenizer.json").is_file():
        with suppress(InputError):  # the run's own is checked elsewhere
            if vocabulary(tokenizer_of(experiment).path) != vocabulary(folder / "tokenizer.json"):
                yield "its tokenizer.json gives other ids than the run's tokenizer: each token would get another's row"
    if (folder / "modules.json").is_file():
        try:
            said = sentence_folder.read(folder)
        except InputError as error:
            yield f"of its modules the Transformer alone is taken ({error.problems[0]})"
            return
        modes = [_POOLING.get(mode, mode) for mode in said.pooling]
        if modes != [experiment.model.pooling]:
            yield f"it pools by {' and '.join(modes)}, model.pooling is {experiment.model.pooling}"
        if more := [module.kind for module in said.modules if module.kind != "Normalize"]:
            yield f"its {' and '.join(more)} behind the pooling is left out"


def first_model(experiment: Experiment, mesh: Mesh) -> DualEncoder:
    """The model before the first update, laid out on `mesh`, which must be the ambient one.

    Raises:
      InputError: as `check`, or no checkpoint of the other run is undamaged.
    """
    source = experiment.model.init_from
    folder, step = run_of(source)
    if folder is None:
        return hf_import.create(experiment.model, jax.random.key(experiment.seed), mesh)
    other = _check_run(experiment, folder, step)
    same_towers = other.model.tie_towers == experiment.model.tie_towers
    there = experiment.model if same_towers else replace(experiment.model, tie_towers=True, frozen=FrozenConfig())
    abstract = abstract_on(dual_encoder.abstract(there), mesh, RULES)
    with Checkpoints(folder, read_only=True) as checkpoints:
        model = checkpoints.restore(abstract, part="model", best=other.validation.select != "last", step=step)[1]
    return model if same_towers else dual_encoder.untied(model, experiment.model)


def first_moments(experiment: Experiment, abstract: Any) -> Any:
    """The optimiser's state of the step that `model.init_from` names, at the beginning of its schedule; or None. For a
    writer too: it starts from what its own config names.

    Args:
      abstract: the state, with concrete shardings.

    Raises:
      InputError: the step is damaged, or its optimiser is built in another way.
    """
    folder, step = run_of(experiment.model.init_from)
    if step is None or not trains_dual_encoder(experiment):
        return None
    with Checkpoints(folder, read_only=True) as checkpoints:
        state = checkpoints.restore(abstract, part="opt_state", step=step)[1]

    def begun_again(node: Any) -> Any:
        return node._replace(count=node.count * 0) if _is_schedule(node) else node

    return jax.tree.map(begun_again, state, is_leaf=_is_schedule)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _check_run(experiment: Experiment, folder: Path, step: int | None) -> Experiment:
    """The other run's experiment, whose arrays and tokeniser have to be those of this one."""
    other, made_of = read_run(folder)
    # One tower may become two that start alike; two cannot become one.
    free = (*_FREE, "tie_towers") if other.model.tie_towers else _FREE
    if step is not None:
        free = tuple(name for name in free if name not in _OF_OPTIMISER)
    problems = differences(other, experiment, ("model",), tuple(f"model.{name}" for name in free))
    if made_of.get("tokenizer") != fingerprint(featurizer_of(experiment)):
        problems.append("its tokeniser (or id hasher) is another one")
    if folder.resolve() == experiment.arm_folder("train").resolve():
        problems.append("is the folder that this run writes; give it another --name")
    if step is not None and not (folder / "checkpoints" / str(step) / MANIFEST).is_file():
        problems.append(f"has no whole checkpoint of step {step}")
    if step is not None:  # its optimiser's state is of the form that these fields give it
        for name, form in (("clip_norm", lambda optim: optim.clip_norm is None), ("decay", lambda optim: optim.decay)):
            if form(other.optim) != form(experiment.optim):
                before, now = (getattr(e.optim, name) for e in (other, experiment))
                problems.append(f"optim.{name}: {before} -> {now}, which its optimiser has no state for; name the run "
                                "instead of its step to begin with a new one")  # fmt: skip
    if problems:
        raise InputError(f"model.init_from = {folder}: no run to start from", problems)
    return other
