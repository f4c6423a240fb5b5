"""The checkpoint of another run that a run starts from, and the index that ADORE makes of it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hand_logs import rewrite
from tiny import sparse, tiny_experiment, with_logs

from crops_jax.artifacts.manifest import seal
from crops_jax.baselines.config import AdoreConfig
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.config import FrozenConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.runs import start
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.folder import open_folder
from crops_jax.runs.tasks import task_of
from crops_jax.text.featurizer import fingerprint
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.config import ValidationConfig
from crops_jax.training.step import init_state


@pytest.fixture
def arm(tmp_path):
    """An arm that starts from a run in the folder `other`."""
    arm = sparse(tiny_experiment(tmp_path))
    return replace(arm, model=replace(arm.model, init_from=str(tmp_path / "other")))


def other_run(arm, folder, select="last", tokenizer=None):
    """A run whose first step, with the weights of seed 1, was better than its last, with those of seed 2."""
    every = int(select != "last")
    run = replace(arm, model=replace(arm.model, init_from=None), validation=ValidationConfig(every, select=select))
    open_folder(folder, run, {"tokenizer": tokenizer or fingerprint(featurizer_of(arm))})
    with jax.set_mesh(make_mesh(arm.mesh)), Checkpoints(folder) as checkpoints:
        for step, score in ((1, 0.9), (2, 0.1)):
            checkpoints.save(step, {"model": dual_encoder.init(run.model, jax.random.key(step))}, score)


@pytest.mark.parametrize(("select", "step"), [("last", 2), ("recall", 1)])
def test_a_run_starts_from_the_step_that_the_other_one_selected(select, step, arm, tmp_path):
    other_run(arm, tmp_path / "other", select)
    with jax.set_mesh(mesh := make_mesh(arm.mesh)):
        found, wanted = start.first_model(arm, mesh), dual_encoder.init(arm.model, jax.random.key(step))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_checkpoint_is_a_start_with_its_optimiser_whose_schedule_begins_anew(arm, tmp_path):
    run, folder = replace(arm, model=replace(arm.model, init_from=None)), tmp_path / "other"
    open_folder(folder, run, {"tokenizer": fingerprint(featurizer_of(arm))})
    task = task_of(run)
    with jax.set_mesh(mesh := make_mesh(arm.mesh)):
        state = init_state(dual_encoder.init(run.model, jax.random.key(5)), task.objective, task.optimiser)
        with Checkpoints(folder) as checkpoints:
            for step in (4, 5):  # every number of the state is its step
                opt_state = jax.tree.map(lambda leaf, step=step: leaf * 0 + step, state.opt_state)
                checkpoints.save(step, {"model": state.model, "opt_state": opt_state})
        later = replace(arm, model=replace(arm.model, init_from=str(folder / "checkpoints/4")))
        assert start.check(later).endswith("other, step 4, and its optimiser") and "optimiser" not in start.check(arm)
        wanted = task.abstract_state(mesh).opt_state
        assert start.first_moments(arm, wanted) is None
        found = start.first_moments(later, wanted)
    schedules = [n for n in jax.tree.leaves(found, is_leaf=start._is_schedule) if start._is_schedule(n)]
    assert len(schedules) > 1 and {int(schedule.count) for schedule in schedules} == {0}
    values = [float(value) for leaf in jax.tree.leaves(found) for value in np.unique(leaf)]
    assert sorted(values)[: len(schedules)] == [0] * len(schedules) and {*sorted(values)[len(schedules) :]} == {4}
    for change in ({"clip_norm": None}, {"decay": "coupled"}):
        with pytest.raises(InputError, match=rf"optim\.{next(iter(change))}: .*, which its optimiser has no state for"):
            start.check(replace(later, optim=replace(later.optim, **change)))
        start.check(replace(arm, optim=replace(arm.optim, **change)))  # with an optimiser of its own
    gone = replace(arm, model=replace(arm.model, init_from=str(folder / "checkpoints/6")))
    with pytest.raises(InputError, match="has no whole checkpoint of step 6"):
        start.check(gone)


def test_one_tower_becomes_two_that_start_alike_and_two_never_become_one(tmp_path):
    one = tiny_experiment(tmp_path)
    model = replace(one.model, tie_towers=True, init_from=str(tmp_path / "other"))
    one = replace(one, model=model)
    other_run(one, tmp_path / "other")
    two = replace(one, model=replace(model, tie_towers=False, frozen=FrozenConfig(towers=("document",), tau=True)))
    with jax.set_mesh(mesh := make_mesh(one.mesh)):
        found, wanted = start.first_model(two, mesh), dual_encoder.init(one.model, jax.random.key(2))
    assert found.config == two.model and found.log_tau == wanted.log_tau
    for tower in ("query", "document"):
        for a, b in zip(jax.tree.leaves(found.tower(tower)), jax.tree.leaves(wanted.query_tower), strict=True):
            np.testing.assert_array_equal(a, b)
    shared = {id(leaf) for leaf in jax.tree.leaves(found.query_tower)}
    assert shared.isdisjoint(id(leaf) for leaf in jax.tree.leaves(found.document_tower)), "a step donates each once"
    other_run(two, tmp_path / "apart")
    back = replace(one, model=replace(model, init_from=str(tmp_path / "apart")))
    with pytest.raises(InputError, match=r"tie_towers: False -> True"):
        start.check(back)


def test_a_run_of_another_tokeniser_is_no_start(arm, tmp_path):
    other_run(arm, tmp_path / "other", tokenizer="another")
    with pytest.raises(InputError, match=r"its tokeniser \(or id hasher\) is another one"):
        start.check(arm)


def test_adore_refuses_widths_that_it_would_not_train(arm):
    frozen = replace(arm.model.frozen, towers=("document",), tau=True)
    model = replace(arm.model, frozen=frozen, tie_towers=False, widths=(4,))
    with pytest.raises(InputError, match=r"model\.widths = \(4,\) would not be trained"):
        task_of(replace(arm, negatives=AdoreConfig(), model=model))


def test_adores_index_holds_what_has_text_in_the_fields_that_the_model_reads(arm):
    with_logs(arm)

    def without_some_covers(table):
        covers = ["" if i >= 32 else f"item {i}" for i in table["item_id"].to_pylist()]
        return table.set_column(table.column_names.index("ocr_cover"), "ocr_cover", [covers])

    rewrite(arm.folder("logs"), "items", without_some_covers)
    seal(arm.folder("logs"), kind="logs", config=None, inputs={}, counts={})
    frozen = replace(arm.model, frozen=FrozenConfig(towers=("document",), tau=True))
    for order, documents in ((arm.text.field_order, 40), (("ocr_cover",), 32)):
        adore = replace(arm, negatives=AdoreConfig(), model=frozen, text=replace(arm.text, field_order=order))
        assert task_of(adore).abstract_constants(make_mesh(arm.mesh)).vectors.shape == (documents, 8)
