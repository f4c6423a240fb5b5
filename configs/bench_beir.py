"""The open benchmark on real text: a collection in the beir layout (data/beir/README.md makes it)."""

from dataclasses import replace

from beir_minilm import EXPERIMENT as BEIR
from bench_demo import compared

from crops_jax.comparison.config import Comparison
from crops_jax.models.config import FrozenConfig

DENSE = compared(BEIR, "runs/bench/beir", 6000)

COMPARISON = Comparison(
    title="Judged collection",
    about=(
        "Queries, documents and grades are those of a public collection. Users, sessions, clicks, the feed and the "
        "production search are simulated, so P1, P2 and P3 come from simulated behaviour: that they hold relevant "
        "documents is built in, how much retrieval gains from them is not. The towers are all-MiniLM-L6-v2."
    ),
    dense=replace(
        DENSE,
        model=replace(DENSE.model, frozen=FrozenConfig(layers=4, keep_states=True)),
        train=replace(DENSE.train, steps=120),
    ),
    bm25_k1=(0.6, 1.2, 2.0),
    bm25_b=(0.4, 0.75),
)
