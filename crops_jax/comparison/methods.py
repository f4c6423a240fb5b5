"""The methods of the paper's tables, each a change of one experiment: labels, negatives, loss, start.

Every method has the same encoder, start, steps and rows of tokens a step; `documents` says how many documents of a
query it may use: as many as CroPS (budget-matched, the paper's question), or as its own source did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice

from crops_jax.baselines.config import AdoreConfig, NegativesConfig
from crops_jax.config import BM25_NAME, Experiment
from crops_jax.labels import LOG_ONLY, caps, levels
from crops_jax.losses.config import (
    HInfoNCEConfig,
    InfoNCEBinaryConfig,
    InfoNCEPerPositiveConfig,
    LossConfig,
    NCEConfig,
    PairwiseConfig,
    SoftmaxCEConfig,
)

PRINTED = "crops"  # the name of the row of CroPS as the paper prints it
Change = Callable[[Experiment], Experiment]
# The tables of the page, in their order.
TABLES = {
    "methods": "Methods (the paper's Table 2)",
    "engine": "What the data engine brings (Table 3)",
    "labels": "What the label ladder brings (Table 3, and the readings of its anchors)",
    "losses": "Losses on the same graded groups (Table 4)",
    "sparse": "The sparse model (Tables 5 and 8)",
    "source": "Baselines with as many negatives as their sources used",
}


@dataclass(frozen=True)
class Method:
    """One row of the benchmark."""

    title: str
    tables: tuple[str, ...]
    change: Change
    """From CroPS as printed to this method."""
    start: str | None = None
    """The method whose run it starts from."""
    share: float = 1.0
    """Share of the steps that are its own; with those of the runs it starts from they are all."""
    reading: str = ""
    """What its source leaves open, and what is done here."""
    equal_data: bool = False
    """As many steps as the groups of the other methods need, where its examples hold other documents than they do."""
    sparse: bool = False
    """Whether it is a change of the sparse model's experiment."""
    extra: bool = False
    """An experiment on the ladder (docs/ladder.md) that no table of the paper has: trained only where it is named."""
    kind: str = "ours"
    """baseline: what can be had without P1, P2 and P3; ours: CroPS or a part of it, and all of the sparse model."""


def _loss(loss: LossConfig) -> Change:
    return lambda e: replace(e, loss=loss)


def _sources(*letters: str, **most: int) -> Change:
    """Groups of these sources alone, with these caps."""
    return lambda e: replace(e, labels=replace(e.labels, sources=letters, caps=caps(**most)))


def _then(*changes: Change) -> Change:
    def change(e: Experiment) -> Experiment:
        for one in changes:
            e = one(e)
        return e

    return change


def _log(*more: str) -> Change:
    """CroPS' groups of the log's own sources and `more` alone. The slots that are left go to more documents of the log,
    source by source in turn: a query has as many documents as CroPS gives it, whatever its caps are.
    """

    def change(e: Experiment) -> Experiment:
        labels = e.labels
        sources = tuple(source for source in (*LOG_ONLY, *more) if source in labels.sources)
        banded = {band.source for band in labels.bands}  # which have no cap
        turns = [source for source in _FILLED if source in sources and source not in banded]
        left = labels.group_size - sum(map(labels.most, sources))
        extra = Counter(islice(cycle(turns), left))
        most = {source: labels.caps[source] + extra[source] for source in sources}
        return replace(e, labels=replace(labels, sources=sources, caps=caps(**most)))

    return change


def _mined(loss: LossConfig, matched: bool = True, **settings: object) -> Change:
    """Clicks and mined negatives: as many as CroPS has other documents a query, or one."""

    def change(e: Experiment) -> Experiment:
        count = min(e.labels.group_size, e.input.docs_per_query) - 1 if matched else 1
        e = _known(replace(e, loss=loss, negatives=NegativesConfig(count=count, **settings)))
        return _LOG(e) if matched else _smaller_groups(2)(_sources("P0", "X3", P0=1, X3=1)(e))

    return change


def _smaller_groups(most: int) -> Change:
    """As many documents a step in groups of at most `most`, so more queries a step."""

    def change(e: Experiment) -> Experiment:
        more = -(-e.input.docs_per_query // most)
        packing = e.input.packing
        if packing is not None:
            packing = replace(packing, query_rows=packing.query_rows * more)
        given = replace(e.input, batch_queries=e.input.batch_queries * more, docs_per_query=most, packing=packing)
        return replace(e, input=given)

    return change


def _known(e: Experiment) -> Experiment:
    """Positives of the query in other groups are no in-batch negatives, as the sources of the baselines have it."""
    return replace(e, input=replace(e.input, known_positives=_KNOWN))


def _half(e: Experiment) -> Experiment:
    """Twice the queries a step: examples of one anchor hold half the documents of a group, or fewer. Without packing an
    example takes the slots of a whole group, and there is no room for more."""
    if e.input.packing is None:
        return e
    packing = replace(e.input.packing, query_rows=e.input.packing.query_rows * 2)
    return replace(e, input=replace(e.input, batch_queries=e.input.batch_queries * 2, packing=packing))


def _one_click(e: Experiment) -> Experiment:
    e = replace(e, labels=replace(e.labels, sources=("P0",), caps=caps(P0=1)))
    return _smaller_groups(1)(e)


def _adore(e: Experiment) -> Experiment:
    frozen = replace(e.model.frozen, towers=("document",), tau=True)
    model = replace(e.model, tie_towers=False, frozen=frozen)
    return _LOG(replace(e, model=model, negatives=AdoreConfig()))


def _one_anchor(min_anchor: int) -> Change:
    def change(e: Experiment) -> Experiment:
        labels = replace(e.labels, one_anchor=True, min_anchor=min_anchor)
        return _half(replace(e, labels=labels, loss=InfoNCEPerPositiveConfig()))

    return change


def _same(e: Experiment) -> Experiment:
    return e


def _hard_below(e: Experiment) -> Experiment:
    """BM25's documents in the slots of F1 and of all U2 but one, at the label of F1."""
    labels = replace(e.labels, sources=("P0", "P1", "P2", "P3", "X3", "U2"), caps=e.labels.caps | {"U2": 1})
    count = e.labels.group_size - labels.group_size
    return replace(e, labels=labels, negatives=NegativesConfig(ranker="bm25", top=100, count=count, graded=True))


def _clicks(count: int) -> Change:
    """Groups of at most so many clicks; U2 has the slots that this frees, or gives those that it needs; where its ranks
    have bands, X3."""

    def change(e: Experiment) -> Experiment:
        most = e.labels.caps
        other = "X3" if any(band.source == "U2" for band in e.labels.bands) else "U2"
        return replace(e, labels=replace(e.labels, caps=most | {"P0": count, other: most[other] + most["P0"] - count}))

    return change


def _positives(e: Experiment) -> Experiment:
    """The engine's positives alone, one of each source: as many documents a step, of more queries."""
    e = _sources("P0", "P1", "P2", "P3", P0=1, P1=1, P2=1, P3=1)(e)
    if e.input.packing is None:
        return _smaller_groups(4)(e)
    # A group seldom has all four: queries for twice as many groups, and the rows of documents are the bound.
    return replace(e, input=replace(_smaller_groups(2)(e).input, docs_per_query=4))


_FILLED = ("X3", "P0", "F1", "U2")  # in this turn the log's sources get the slots that augmentation leaves empty
_LOG, _QUERY, _SYSTEM = _log(), _log("P1"), _log("P1", "P2")
_KNOWN = 64  # of a query, at most; the run says how many are left out
_WARM = 0.2  # share of the steps with BM25's negatives, before a method that mines with its own model
_IN_BATCH = PairwiseConfig(in_batch=True)

METHODS: dict[str, Method] = {
    "nce": Method(
        "NCE", ("methods",), _then(_one_click, _known, _loss(NCEConfig())), kind="baseline",
        reading="the hardest document of the batch is the negative (ANCE's baseline of this name); of a search with "
        "several clicks one is drawn, once for all epochs",
    ),
    "dpr": Method(
        "DPR", ("methods",), _mined(InfoNCEBinaryConfig(), ranker="bm25", top=100), kind="baseline",
        reading="negatives drawn from BM25's first 100; in-batch documents contrast too",
    ),
    "dpr_warm": Method(
        "DPR (warm-up)", (), _mined(InfoNCEBinaryConfig(), ranker="bm25", top=100), share=_WARM, kind="baseline",
    ),
    "ance": Method(
        "ANCE", ("methods",), _mined(PairwiseConfig(), rounds=10), start="dpr_warm", share=1 - _WARM, kind="baseline",
        reading="negatives from the model's first 200, found anew ten times; warmed up as DPR for a fifth of the "
        "steps, and each of both parts has a schedule of its own",
    ),
    "star": Method("STAR", (), _mined(_IN_BATCH), start="dpr_warm", share=0.6, kind="baseline"),
    "adore": Method(
        "ADORE + STAR", ("methods",), _adore, start="star", share=0.2, kind="baseline",
        reading="a fifth of the steps as DPR, three as STAR, one as ADORE, whose steps encode no documents; each "
        "part has a schedule of its own, and tau is frozen in the last",
    ),
    "trisampler": Method(
        "TriSampler", ("methods",), _mined(InfoNCEBinaryConfig(), rounds=10, draw="triangle"), start="dpr_warm",
        share=1 - _WARM, kind="baseline",
        reading="only descriptions of its paper were found: K = 200, shortlist 50, and cos / tau as score are ours",
    ),
    "fs_lr": Method(
        "FS-LR", ("methods", "engine"), _LOG, kind="baseline",
        reading="the log's own samples on the ladder with H-InfoNCE: the paper's Table 3 starts from its exact figures",
    ),
    "fs_lr_pairwise": Method(
        "FS-LR, pairwise", ("methods",), _then(_LOG, _known, _loss(PairwiseConfig(min_anchor_label=1, in_batch=True))),
        kind="baseline", reading="the same samples with the pairwise loss of its public code",
    ),
    PRINTED: Method("CroPS as printed", ("methods", "engine", "labels", "losses"), _same),
    "crops_low": Method(
        "CroPS, low rungs weighed 0.1", ("methods", "engine", "labels", "losses"),
        _loss(HInfoNCEConfig(rung_weights=(0.1, 0.1, 0.1, 1.0, 1.0))),
        reading="rows of anchors labelled 1 to 3 count a tenth",
    ),
    "query_level": Method("log + P1 (query level)", ("engine",), _QUERY),
    "system_level": Method("log + P1 + P2 (system level)", ("engine",), _SYSTEM),
    "binary": Method(
        "binary labels", ("labels",), _loss(InfoNCEBinaryConfig()),
        reading="labels from 4 up are positives and anchors, the others negatives",
    ),
    "query_level_4": Method(
        "P1 labelled 4", ("labels",), lambda e: replace(e, labels=replace(e.labels, levels=levels(P1=4))),
    ),
    "crops_low_3": Method(
        "low rungs weighed 0.3", ("labels",), _loss(HInfoNCEConfig(rung_weights=(0.3, 0.3, 0.3, 1.0, 1.0))), extra=True,
    ),
    "anchors_3": Method(
        "anchors from label 3 up", ("labels",), _loss(HInfoNCEConfig(min_anchor_label=3)), extra=True,
    ),
    "anchors_4": Method("anchors from label 4 up", ("labels",), _loss(HInfoNCEConfig(min_anchor_label=4))),
    "anchors_2": Method(
        "anchors from label 2 up", ("labels",), _loss(HInfoNCEConfig(min_anchor_label=2)), extra=True,
    ),
    "hard_below": Method(
        "anchors from label 2 up, BM25's documents below", ("labels",),
        _then(_hard_below, _loss(HInfoNCEConfig(min_anchor_label=2))),
        reading="documents from BM25's first 100 take F1's slots and all of U2's but one: hard negatives "
        "for labels 2 and 3 too",
        extra=True,
    ),
    "crops_known": Method(
        "CroPS, no known positive as a negative", ("labels",), _known,
        reading="positives of the query that other groups hold are left out of its negatives, as the baselines' are",
        extra=True,
    ),
    "anchors_4_known": Method(
        "anchors from label 4 up, no known positive as a negative", ("labels",),
        _then(_known, _loss(HInfoNCEConfig(min_anchor_label=4))), extra=True,
    ),
    "own_group": Method(
        "low rungs within their group alone", ("labels",), _loss(HInfoNCEConfig(min_in_batch_label=4)),
        reading="anchors labelled 1 to 3 contrast with the lower labels of their group, not with in-batch documents",
        extra=True,
    ),
    "warm_rungs": Method(
        "low rungs at four times tau", ("labels",),
        _loss(HInfoNCEConfig(rung_temperatures=(4.0, 4.0, 4.0, 1.0, 1.0))), extra=True,
    ),
    "anchors_f1": Method(
        "of the low rungs, F1 alone anchors", ("labels",),
        _loss(HInfoNCEConfig(rung_weights=(1.0, 0.0, 0.0, 1.0, 1.0))), extra=True,
    ),
    "log_binary": Method(
        "log only, binary labels", ("engine", "labels"), _then(_LOG, _loss(InfoNCEBinaryConfig())), kind="baseline",
    ),
    "positives": Method(
        "positives alone, binary labels", ("labels",), _then(_positives, _loss(InfoNCEBinaryConfig())), extra=True,
        reading="no document of the low rungs is in a group: their slots go to more queries a step",
    ),
    "positives_known": Method(
        "positives alone, binary labels, no known positive as a negative", ("labels",),
        _then(_positives, _known, _loss(InfoNCEBinaryConfig())), extra=True,
    ),
    "log_positives_known": Method(
        "log only, clicks alone, binary labels, no known positive as a negative", ("labels",),
        _then(_one_click, _known, _loss(InfoNCEBinaryConfig())), kind="baseline", extra=True,
        reading="a click a query and in-batch negatives; of a search with several clicks one is drawn, once for all "
        "epochs",
    ),
    "log_low": Method(
        "log only, low rungs weighed 0.1", ("engine",),
        _then(_LOG, _loss(HInfoNCEConfig(rung_weights=(0.1, 0.1, 0.1, 1.0, 1.0)))), extra=True, kind="baseline",
    ),
    "log_binary_one_click": Method(
        "log only, binary labels, one click a query", ("engine",),
        _then(_LOG, _clicks(1), _loss(InfoNCEBinaryConfig())), extra=True, kind="baseline",
    ),
    "binary_two_clicks": Method(
        "binary labels, two clicks a query", ("engine",), _then(_clicks(2), _loss(InfoNCEBinaryConfig())),
        extra=True,
    ),
    "softmax_ce": Method(
        "Softmax-CE", ("losses",), _loss(SoftmaxCEConfig()),
        reading="one softmax a query over all documents, targets in proportion to labels",
    ),
    "infonce": Method(
        "InfoNCE, one positive a step", ("losses",), _one_anchor(1), equal_data=True,
        reading="every label is an anchor once, in an example of its own: as many steps as the same groups need",
    ),
    "infonce_4": Method(
        "InfoNCE, one positive a step, from label 4 up", ("losses",), _one_anchor(4), equal_data=True,
        reading="every label from 4 up is an anchor once, in an example of its own: as many steps as these need",
    ),
    "sparse_log": Method("sparse, log only", ("sparse",), _LOG, sparse=True),
    "sparse_query": Method("sparse, + P1", ("sparse",), _QUERY, sparse=True),
    "sparse_system": Method("sparse, + P1 + P2", ("sparse",), _SYSTEM, sparse=True),
    "sparse_crops": Method("sparse, CroPS as printed", ("sparse",), _same, sparse=True),
    "sparse_low": Method(
        "sparse, CroPS, low rungs weighed 0.1", ("sparse",),
        _loss(HInfoNCEConfig(rung_weights=(0.1, 0.1, 0.1, 1.0, 1.0))), sparse=True,
    ),
    "dpr_source": Method(
        "DPR, one negative", ("source",),
        _mined(InfoNCEBinaryConfig(), matched=False, ranker="bm25", top=100, rounds=3), kind="baseline",
        reading="clicks and negatives are drawn anew at each third of the steps, about an epoch in the demo's world",
    ),
    "dpr_source_warm": Method(
        "DPR, one negative (warm-up)", (), _mined(InfoNCEBinaryConfig(), matched=False, ranker="bm25", top=100),
        share=_WARM, kind="baseline",
    ),
    "ance_source": Method(
        "ANCE, one negative", ("source",), _mined(PairwiseConfig(), matched=False, rounds=10),
        start="dpr_source_warm", share=1 - _WARM, kind="baseline",
    ),
    "trisampler_source": Method(
        "TriSampler, one negative", ("source",),
        _mined(InfoNCEBinaryConfig(), matched=False, rounds=10, draw="triangle"), start="dpr_source_warm",
        share=1 - _WARM, kind="baseline",
    ),
}  # fmt: skip


def is_baseline(name: str) -> bool:
    """Whether the row of this name, BM25's or a method's, can be had without P1, P2 and P3."""
    return name == BM25_NAME or METHODS[name].kind == "baseline"


PAPER = tuple(name for name, method in METHODS.items() if method.tables and not method.extra)
SHOWN = tuple(name for name, method in METHODS.items() if method.tables)


def arm(name: str, base: Experiment, seed: int, factor: float) -> Experiment:
    """The experiment of a method at a seed and a factor of the learning rates.

    A method that starts from another one begins with that one's model at the same seed and factor.
    """
    method = METHODS[name]
    rates = {n: getattr(base.optim, n) for n in ("learning_rate", "table_learning_rate")}
    optim = replace(base.optim, **{n: rate and rate * factor for n, rate in rates.items()})
    steps = _steps(name, base.train.steps)
    if method.share < 1:
        optim = replace(optim, warmup_steps=min(optim.warmup_steps, steps // 4))
    train = replace(base.train, steps=steps, keep=1)
    e = replace(base, seed=seed, input=replace(base.input, seed=seed), optim=optim, train=train)
    e = method.change(replace(e, name=arm_name(name, seed, factor), title=method.title))
    if method.start is not None:
        start = replace(e, name=arm_name(method.start, seed, factor))
        e = replace(e, model=replace(e.model, init_from=str(start.arm_folder("train"))))
    return e


def _steps(name: str, whole: int) -> int:
    """A method's own steps, from where its start ends: the parts of a chain are the whole, however they round."""
    begin = _begins(name)
    return round(whole * (begin + METHODS[name].share)) - round(whole * begin)


def _begins(name: str) -> float:
    """The share of the steps that the runs take which a method starts from."""
    start = METHODS[name].start
    return 0.0 if start is None else _begins(start) + METHODS[start].share


def arm_name(name: str, seed: int, factor: float) -> str:
    """The arm's folder below the world's."""
    return f"{name}/lr{factor:g}_seed{seed}"
