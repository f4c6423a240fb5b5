"""Losses against worked numbers, a plain-Python oracle, and each other."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import one_anchor
from loss_cases import (
    FACTORED,
    LOG_TAU,
    NXN,
    RING,
    STREAMING,
    loss_and_aux,
    make_batch,
    near,
    random_case,
    relative,
    toy,
    value_and_grads,
)

from crops_jax.errors import InputError
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import (
    HInfoNCEConfig,
    InfoNCEBinaryConfig,
    InfoNCEPerPositiveConfig,
    PairwiseConfig,
    SoftmaxCEConfig,
)
from crops_jax.losses.lse import masked_lse

EVERY_FORM = pytest.mark.parametrize("form", ["nxn", "factored", "streaming"])


def oracle(e_query, e_doc, log_tau, batch, mask_duplicate_ids=True, min_anchor_label=1):
    """Row losses by the definition, one pair of documents at a time, in float64."""
    tau, rows = math.exp(float(log_tau)), {}
    real = [j for j in range(len(batch.label)) if batch.valid[j]]
    owner = np.repeat(np.arange(batch.sizes[0]), batch.sizes[1] // batch.sizes[0])
    for i in real:
        q = owner[i]
        own_ids = {tuple(batch.doc_key[j]) for j in real if owner[j] == q}
        kept = [i]
        for j in real:
            if owner[j] == q:
                keep = batch.label[j] < batch.label[i]
            else:
                keep = tuple(batch.query_key[owner[j]]) != tuple(batch.query_key[q])
                keep &= not (mask_duplicate_ids and tuple(batch.doc_key[j]) in own_ids)
            kept += [j] if keep and j != i else []
        z = [float(e_query[q].astype(np.float64) @ e_doc[j].astype(np.float64)) / tau for j in kept]
        if batch.label[i] >= min_anchor_label:
            rows[i] = max(z) + math.log(sum(math.exp(x - max(z)) for x in z)) - z[0]
    return rows


@EVERY_FORM
def test_worked_example_rows_and_reductions(form):
    want = {"mean": 0.447154, "sum": 2.235769, "per_query": 0.445282}
    configs = {name: HInfoNCEConfig(form, reduction=name) for name in want}
    configs["from label 2"] = HInfoNCEConfig(form, min_anchor_label=2)
    together = jax.jit(lambda *args: {name: build_loss(config)(*args) for name, config in configs.items()})
    got = together(*toy()[:2], LOG_TAU, toy()[2])
    for name, value in want.items():
        loss, aux = got[name]
        near(loss, value)
        near(aux.row_loss, [0.417438, 0.342350, 0.604131, 0.325844, 0.546006, 0])
        near(np.sum(np.asarray(aux.row_loss) * aux.row_weight), value)
    near(aux.label_count, [1, 1, 0, 2, 1])
    near(aux.label_loss, [0.604131, 0.546006, 0, (0.342350 + 0.325844) / 2, 0.417438])
    near(aux.label_cosine, [0.4, 0.5, 0, 0.75, 0.9])
    assert set(aux.metrics()) >= {"loss_label_5", "cosine_label_1", "count_label_4", "masked_duplicates"}
    near(got["from label 2"][0], 0.407910)


@EVERY_FORM
def test_worked_example_gradients(form):
    """With q1, q2 the first two axes, the gradient of z is tau times the documents' first two coordinates."""
    e_query, e_doc, batch = toy()
    _, _, (d_query, d_doc, d_log_tau) = value_and_grads(HInfoNCEConfig(form), e_query, e_doc, LOG_TAU, batch)
    want = [[-0.068254, -0.009513, -0.048187, 0.092079, 0.033874], [0.033038, 0.020039, 0.054471, -0.055616, -0.051932]]
    near(d_doc[:5, :2].T * 0.2, want)
    near(np.sum(want, axis=1), [0, 0], 2e-6)
    near(d_log_tau, 0.509286)
    near(d_log_tau / 0.2, 2.546428, 5e-6)
    near(-np.sum(e_query * np.asarray(d_query)), 0.509286)  # z is linear in e_q
    assert np.isfinite(d_query).all() and np.all(np.asarray(d_doc[5]) == 0), "NaN in padding must not leak"


@EVERY_FORM
def test_worked_example_variants(form):
    config = HInfoNCEConfig(form)
    e_query, e_doc, shared = toy(doc_keys={(1, 0): 0})
    loss, aux = loss_and_aux(config, e_query, e_doc, LOG_TAU, shared)
    near(aux.row_loss[:5], [0.384092, 0.241311, 0.201413, 0.289240, 0.407606])
    near(loss, 0.304733)
    assert int(aux.masked_duplicates) == 2
    loss, aux = loss_and_aux(HInfoNCEConfig(form, mask_duplicate_ids=False), e_query, e_doc, LOG_TAU, shared)
    near(loss, 0.447154)
    assert int(aux.masked_duplicates) == 0
    e_query, e_doc, equal = toy(labels=((5, 5, 5), (4, 4)))
    near(loss_and_aux(config, e_query, e_doc, LOG_TAU, equal)[0], 0.307214)
    alone = make_batch([[5, 4, 1], []])
    near(loss_and_aux(config, e_query, e_doc, LOG_TAU, alone)[0], 0.190984)


CASES = {
    "ragged": {"labels": [[5, 4, 4, 3, 1], [4], [4, 3], [5, 5, 2, 1], [4, 2, 2], [4, 4], [5, 1, 1, 1, 1], [5]]},
    "groups of one": {"labels": [[4]] * 8},
    "equal labels": {"labels": [[4, 4, 4]] * 8},
    "one query": {"labels": [[5, 4, 4, 3, 1]]},
    "padding queries": {"labels": [[5, 1], [], [4, 2, 1], []]},
    "duplicate ids": {"labels": [[5, 3, 1]] * 8, "doc_keys": {(1, 0): 0, (2, 2): 0, (3, 1): 1, (4, 0): 2, (5, 0): 2}},
    "duplicate in a group": {"labels": [[5, 5, 1]] * 4, "doc_keys": {(0, 1): 0}},
    "duplicate queries": {"labels": [[5, 4, 1], [4, 1]] * 4, "query_keys": [0, 1, 0, 2, 2, 2, 3, 4]},
    "both at once": {
        "labels": [[5, 3], [4, 3, 1]] * 4,
        "query_keys": [0, 1, 0, 2, 2, 2, 3, 4],
        "doc_keys": {(5, 0): 0},
    },
}


def same_shape(case):
    """Eight groups of five slots: one compilation serves every case, and each case tests padding too."""
    empty = 8 - len(case["labels"])
    keys = case.get("query_keys", list(range(8 - empty)))
    return case | {"labels": case["labels"] + [[]] * empty, "query_keys": keys + [99] * empty, "size": 5}


@pytest.mark.parametrize("tau", [0.05, 0.01])
@pytest.mark.parametrize("case", CASES)
def test_every_form_equals_the_oracle(case, tau):
    e_query, e_doc, batch = random_case(**same_shape(CASES[case]))
    log_tau = np.float32(math.log(tau))
    rows = oracle(e_query, e_doc, log_tau, batch)
    results = {c.form: value_and_grads(c, e_query, e_doc, log_tau, batch) for c in (NXN, FACTORED, STREAMING)}
    for loss, aux, grads in results.values():
        relative(loss, np.mean(list(rows.values())), 1e-5)
        near(np.asarray(aux.row_loss)[list(rows)], list(rows.values()), 2e-5)
        for got, want in zip(grads, results["nxn"][2], strict=True):
            relative(got, want, 1e-5)
        for name in ("label_count", "masked_duplicates", "masked_same_query"):
            near(getattr(aux, name), getattr(results["nxn"][1], name), 0)


@pytest.mark.parametrize("case", CASES)
def test_forms_agree_in_float64(case):
    with jax.enable_x64(True):
        e_query, e_doc, batch = random_case(dtype=np.float64, **same_shape(CASES[case]))
        log_tau = np.float64(math.log(0.01))
        loss, _, grads = value_and_grads(NXN, e_query, e_doc, log_tau, batch)
        relative(loss, np.mean(list(oracle(e_query, e_doc, log_tau, batch).values())), 1e-12)
        for config in (FACTORED, STREAMING, RING):
            got_loss, _, got_grads = value_and_grads(config, e_query, e_doc, log_tau, batch)
            assert got_loss.dtype == np.float64
            for got, want in zip((got_loss, *got_grads), (loss, *grads), strict=True):
                relative(got, want, 1e-12)


@pytest.mark.parametrize("config", [NXN, FACTORED, STREAMING], ids=lambda c: c.form)
def test_exact_copies_at_tau_001(config):
    """Logits of 100: the value stays within 1e-5 of float64 and nothing overflows."""
    e_query, e_doc, batch = random_case(**same_shape({"labels": [[5, 4, 1]] * 8}))
    e_doc[::5] = e_query
    log_tau = np.float32(math.log(0.01))
    loss, _, grads = value_and_grads(config, e_query, e_doc, log_tau, batch)
    near(loss, np.mean(list(oracle(e_query, e_doc, log_tau, batch).values())), 1e-5)
    assert all(np.isfinite(g).all() for g in grads)


def test_the_mean_over_queries_leaves_out_those_without_an_anchor():
    e_query, e_doc, batch = toy()
    config = HInfoNCEConfig(reduction="per_query", min_anchor_label=5)
    loss, aux = loss_and_aux(config, e_query, e_doc, LOG_TAU, batch)
    assert aux.row_weight.tolist() == [1, 0, 0, 0, 0, 0] and loss == aux.row_loss[0] > 0


@pytest.mark.parametrize("form", ["nxn", "factored"])
def test_invariances(form):
    loss_of = functools.partial(loss_and_aux, HInfoNCEConfig(form, reduction="per_query"))
    e_query, e_doc, batch = random_case(labels=[[1, 3, 2], [2, 2, 1], [3, 1, 1], [2, 1, 3]])
    base = loss_of(e_query, e_doc, LOG_TAU, batch)[0]
    for relabel in (lambda x: x + 2, lambda x: x * x):
        near(loss_of(e_query, e_doc, LOG_TAU, dataclasses.replace(batch, label=relabel(batch.label)))[0], base)
    inside = np.concatenate([q * 3 + np.array(p) for q, p in enumerate([(2, 0, 1), (0, 2, 1), (1, 2, 0), (2, 1, 0)])])
    groups = np.concatenate([np.arange(3) + 3 * q for q in (3, 0, 2, 1)])
    for order, queries in ((inside, np.arange(4)), (groups, np.array([3, 0, 2, 1]))):
        moved = dataclasses.replace(
            batch, doc_key=batch.doc_key[order], label=batch.label[order], query_key=batch.query_key[queries]
        )
        near(loss_of(e_query[queries], e_doc[order], LOG_TAU, moved)[0], base)


def test_a_lone_document_has_no_loss_and_no_gradient():
    for config in (NXN, FACTORED, STREAMING):
        e_query, e_doc, batch = random_case(**same_shape({"labels": [[4]]}))
        loss, _, grads = value_and_grads(config, e_query, e_doc, LOG_TAU, batch)
        near(loss, 0, 1e-6)
        for grad in grads:
            near(grad, 0, 1e-6)


@pytest.mark.parametrize(
    "config",
    [NXN, FACTORED, HInfoNCEConfig("streaming"), InfoNCEBinaryConfig(), InfoNCEPerPositiveConfig(), SoftmaxCEConfig()],
    ids=str,
)
def test_an_all_padding_batch_is_zero(config):
    e_query, e_doc, batch = random_case(labels=[[], []], size=3, dim=3)
    loss, _, grads = value_and_grads(config, e_query * np.nan, e_doc * np.nan, LOG_TAU, batch)
    assert float(loss) == 0 and all(np.all(np.asarray(g) == 0) for g in grads)


def test_duplicate_queries_are_no_negatives_of_each_other():
    """Two searches for one string, alone in the batch: only the within-group part remains."""
    e_query, e_doc, batch = random_case(labels=[[5, 1], [4]], query_keys=[7, 7], size=3, dim=3)
    _, aux = loss_and_aux(FACTORED, e_query, e_doc, LOG_TAU, batch)
    z = (e_query[0] @ e_doc[:2].T) / 0.2
    near(aux.row_loss, [np.logaddexp(*z) - z[0], 0, 0, 0, 0, 0], 1e-5)
    assert int(aux.masked_same_query) == 3


def test_infonce_binary_worked_example():
    loss, aux = loss_and_aux(InfoNCEBinaryConfig(), *toy()[:2], LOG_TAU, toy()[2])
    near(aux.row_loss, [0.139925, 0.342350, 0, 0.325844, 0, 0])
    near(loss, 0.269373)


def test_infonce_per_positive_worked_example():
    """The step that holds anchors d2 and d4 with their lower documents: d1 is absent."""
    e_query, e_doc, batch = toy()
    loss, aux = loss_and_aux(InfoNCEPerPositiveConfig(), e_query, e_doc, LOG_TAU, one_anchor(batch, np.array([1, 0])))
    near(aux.row_loss, [0, 0.342350, 0, 0.289240, 0, 0])
    near(loss, 0.315795)


@pytest.mark.parametrize(("gain", "rows", "mean"), [
    ("linear", [1.067438, 0.825844], 0.946641), ("exponential", [0.789778, 0.575844], 0.682811)
])  # fmt: skip
def test_softmax_ce_worked_example(gain, rows, mean):
    e_query, e_doc, batch = toy()
    loss, aux, (_, d_doc, _) = value_and_grads(SoftmaxCEConfig(gain), e_query, e_doc, LOG_TAU, batch)
    near(loss, mean)
    near(2 * (aux.row_loss * aux.row_weight).reshape(2, 3).sum(axis=1), rows)
    if gain == "linear":
        near(aux.row_weight * 2, [0.5, 0.4, 0.1, 2 / 3, 1 / 3, 0])
        near(2 * 0.2 * d_doc[:5, 0], [0.158732, -0.157666, -0.045928, 0.032796, 0.012065])
    summed = loss_and_aux(SoftmaxCEConfig(gain, form="sum", reduction="sum"), e_query, e_doc, LOG_TAU, batch)[0]
    scale = {"linear": (10, 6), "exponential": (47, 18)}[gain]
    near(summed, np.dot(rows, scale), 5e-5)


def test_masked_lse_of_nothing_has_finite_gradient():
    value, grad = jax.value_and_grad(lambda x: jnp.sum(masked_lse(x, jnp.zeros((1, 3), bool))))(
        jnp.full((1, 3), jnp.inf)
    )
    assert float(value) == np.float32(-1e30) and np.all(np.asarray(grad) == 0)


def test_bfloat16_vectors_give_a_float32_loss():
    e_query, e_doc, batch = toy()
    rounded = [x.astype(jnp.bfloat16) for x in (e_query, e_doc)]
    loss, _ = loss_and_aux(FACTORED, *rounded, LOG_TAU, batch)
    assert loss.dtype == jnp.float32
    near(loss, loss_and_aux(FACTORED, *(x.astype(np.float32) for x in rounded), LOG_TAU, batch)[0])


def test_groups_that_do_not_divide_the_batch_are_refused():
    e_query, e_doc, batch = random_case(labels=[[1, 2]] * 3)
    with pytest.raises(ValueError, match="5 documents do not make equal groups for 3 queries"):
        loss_and_aux(FACTORED, e_query, e_doc[:5], LOG_TAU, batch)


@EVERY_FORM
def test_lower_anchors_may_contrast_within_their_group_alone(form):
    """From label 5 up: d1 as ever, d2 and d4 against the one lower document beside them, d3 and d5 against nothing."""
    e_query, e_doc, batch = toy()
    loss, aux = loss_and_aux(HInfoNCEConfig(form, min_in_batch_label=5), e_query, e_doc, LOG_TAU, batch)
    near(aux.row_loss, [0.417438, 0.201413, 0, 0.201413, 0, 0])
    near(loss, 0.164053)


@pytest.mark.parametrize("form", ["nxn", *(pytest.param(f, marks=pytest.mark.slow) for f in ("factored", "streaming"))])
def test_rungs_have_weights_and_temperatures_of_their_own(form):
    """The worked example's rows, weighted; and rows of labels below 4 at twice the temperature, by the oracle."""
    rows, labels = np.array([0.417438, 0.342350, 0.604131, 0.325844, 0.546006]), [5, 4, 1, 4, 2]
    weights = (0.5, 0.25, 1.0, 2.0, 3.0)
    share = np.array([weights[label - 1] for label in labels])
    e_query, e_doc, batch = toy()
    weighted = HInfoNCEConfig(form, rung_weights=weights)
    near(loss_and_aux(weighted, e_query, e_doc, LOG_TAU, batch)[0], (share * rows).sum() / share.sum())
    near(loss_and_aux(HInfoNCEConfig(form, rung_weights=(0, 0, 0, 1, 1)), e_query, e_doc, LOG_TAU, batch)[0],
         loss_and_aux(HInfoNCEConfig(form, min_anchor_label=4), e_query, e_doc, LOG_TAU, batch)[0])  # fmt: skip
    warmer = oracle(e_query, e_doc, LOG_TAU + math.log(2), batch)
    as_is = oracle(e_query, e_doc, LOG_TAU, batch)
    wanted = np.mean([warmer[i] if label < 4 else as_is[i] for i, label in enumerate(labels)])
    warm = HInfoNCEConfig(form, rung_temperatures=(2.0, 2.0, 2.0, 1.0, 1.0))
    near(loss_and_aux(warm, e_query, e_doc, LOG_TAU, batch)[0], wanted)


@pytest.mark.parametrize(("loss", "settings", "said"), [
    (HInfoNCEConfig, {"rung_weights": (0, 0, 0, 0, 0)}, "no anchor counts"),
    (HInfoNCEConfig, {"rung_weights": (1, 1, 1, 0, 0), "min_anchor_label": 4}, "no anchor counts, from min_anchor_"),
    (HInfoNCEConfig, {"rung_weights": (1, 1, 1, 1, 0), "min_anchor_label": 7}, "no anchor counts, from min_anchor_"),
    (HInfoNCEConfig, {"rung_weights": (1, 1, 1, 1, math.inf)}, "rung_weights: inf is no number of zero or more"),
    (HInfoNCEConfig, {"rung_temperatures": (math.inf, 1, 1, 1, 1)}, "rung_temperatures: inf is no number above zero"),
    (PairwiseConfig, {"in_batch_weight": math.inf}, "in_batch_weight: inf is endless"),
])  # fmt: skip
def test_a_loss_that_would_teach_nothing_or_be_no_number_is_refused(loss, settings, said):
    with pytest.raises(InputError, match=said):
        loss(**settings)
