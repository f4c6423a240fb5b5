"""The open benchmark on real text: the Home Depot collection (data/homedepot/README.md makes it)."""

from dataclasses import replace

from bench_demo import compared
from homedepot_minilm import EXPERIMENT as HOMEDEPOT

from crops_jax.comparison.config import Comparison
from crops_jax.models.config import FrozenConfig

DENSE = compared(HOMEDEPOT, "runs/bench/homedepot", 20_000)

COMPARISON = Comparison(
    title="Home Depot",
    about=(
        "Queries, product titles and grades are real: about 52,600 products, some six judged for each query. Users, "
        "sessions, clicks, the feed and the production search are simulated, so P1, P2 and P3 come from simulated "
        "behaviour: that they hold relevant products is built in, how much retrieval gains from them is not. The "
        "towers are all-MiniLM-L6-v2."
    ),
    dense=replace(DENSE, model=replace(DENSE.model, frozen=FrozenConfig(layers=5, keep_states=True))),
    rate_grid=(2.0, 4.0, 8.0, 16.0),  # one layer trained for 200 steps takes more than six layers do
    bm25_k1=(0.6, 1.2, 2.0),
    bm25_b=(0.4, 0.75),
)
