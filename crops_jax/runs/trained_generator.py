"""From an arm that writes item ids to its trained generator, as a retriever."""

from __future__ import annotations

import jax
import numpy as np

from crops_jax.config import Experiment, differences
from crops_jax.errors import InputError
from crops_jax.generative.searcher import GenerativeSearcher
from crops_jax.parallel.sharding import make_mesh
from crops_jax.runs.folder import FREE_FIELDS, read_run
from crops_jax.runs.generator import GeneratorTask
from crops_jax.runs.item_ids import generator_of


def generative_searcher(experiment: Experiment) -> GenerativeSearcher:
    """Beam search with the arm's newest good weights.

    Raises:
      InputError: the arm is not trained, or the experiment asks for another model, tokeniser or ids than it was trained
        with.
    """
    folder = experiment.ready("train")
    trained, made_of = read_run(folder)
    config = generator_of(experiment)
    task, mesh = GeneratorTask(experiment, config), make_mesh(experiment.mesh)
    problems = differences(trained, experiment, ("suggest", "text", "vocabulary", "vocabulary_of"), FREE_FIELDS)
    problems += [f"{name}: not what it was trained with; train it again (--train.fresh=True)"
                 for name, now in task.written().items() if made_of.get(name) != now]  # fmt: skip
    if problems:
        raise InputError(f"{folder} was trained with another config", problems)
    with jax.set_mesh(mesh):
        model = task.restored(folder, mesh)
    return GenerativeSearcher(jax.tree.map(np.asarray, model), task.text)
