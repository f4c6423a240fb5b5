"""The open benchmark on the demo's synthetic world (make bench-small)."""

from dataclasses import replace

from demo import EXPERIMENT as DEMO
from demo_sparse import EXPERIMENT as SPARSE

from crops_jax.comparison.config import Comparison
from crops_jax.config import Experiment
from crops_jax.losses.config import HInfoNCEConfig

WORKDIR = "runs/bench/demo"


def compared(e: Experiment) -> Experiment:
    """CroPS as printed on a world with a validation day; what the benchmark does not read is not made."""
    return replace(
        e, workdir=WORKDIR, loss=HInfoNCEConfig(),
        simulate=replace(e.simulate, sessions=replace(e.simulate.sessions, validation_sessions=6000)),
        validation=replace(e.validation, every=0), evaluate=replace(e.evaluate, scann=False),
    )  # fmt: skip


COMPARISON = Comparison(
    title="Synthetic world",
    about=(
        "Simulated users of a simulated platform, with full truth: 4,000 items, 300 intents. What users watch in the "
        "feed correlates with what they need, and users who reformulate keep their need: that P1 and P2 hold relevant "
        "documents is built in, how much retrieval gains from them is not."
    ),
    dense=compared(DEMO),
    sparse=compared(SPARSE),
)
