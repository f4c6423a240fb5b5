"""The open benchmark on a denser synthetic world than the demo's."""

from dataclasses import replace

from bench_demo import compared
from demo import EXPERIMENT as DEMO

from crops_jax.comparison.config import Comparison
from crops_jax.simulate.synthetic import SyntheticWorldConfig

COMPARISON = Comparison(
    title="Denser synthetic world",
    about=(
        "The synthetic world with 16,000 items for 126 intents, about 127 for each instead of 10. So many serve a need "
        "that nearly all documents shown are relevant, four in five of those ranked below them, and two in five of "
        "those filtered before (in the synthetic world six, two and one in ten). What else is built in is as there."
    ),
    dense=replace(compared(DEMO, "runs/bench/dense", 6000), world=SyntheticWorldConfig(n_items=16_000, n_intents=126)),
)
