"""The open benchmark on the demo's synthetic world (make bench-small)."""

from dataclasses import replace

from demo import EXPERIMENT as DEMO
from demo_sparse import EXPERIMENT as SPARSE

from crops_jax.comparison.config import Comparison
from crops_jax.config import Experiment
from crops_jax.labels import caps
from crops_jax.losses.config import HInfoNCEConfig

WORKDIR = "runs/bench/demo"


def compared(e: Experiment, workdir: str, validation_sessions: int) -> Experiment:
    """CroPS as printed on a world with a validation day; what the benchmark does not read is not made."""
    sessions = replace(e.simulate.sessions, validation_sessions=validation_sessions)
    return replace(
        e, workdir=workdir, loss=HInfoNCEConfig(), simulate=replace(e.simulate, sessions=sessions),
        # Groups of eight, as those of the methods that fill P1's, P2's and P3's slots from the log.
        labels=replace(e.labels, caps=caps(P0=1, P1=1, P2=1, P3=1, X3=1, U2=2, F1=1)),
        input=replace(e.input, docs_per_query=8),
        validation=replace(e.validation, every=0), evaluate=replace(e.evaluate, scann=False, compact=False),
    )  # fmt: skip


COMPARISON = Comparison(
    title="Synthetic world",
    about=(
        "Simulated users of a simulated platform, with full truth. What users watch in the feed correlates with what "
        "they need, and users who reformulate keep their need: that P1 and P2 hold relevant documents is built in, how "
        "much retrieval gains from them is not."
    ),
    dense=compared(DEMO, WORKDIR, 6000),
    sparse=compared(SPARSE, WORKDIR, 6000),
)
