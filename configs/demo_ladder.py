"""The demo with the whole ladder: every graded document is an anchor, as in the paper, and two fields keep it pure.

X3, U2 and F1 are kept only where theta approves them, and no known positive of a query is one of its negatives. On the
validation day of the synthetic world it is ahead of `demo.py` and level with `demo_positives.py` (docs/ladder.md). Its
candidates are others than theirs, so it has a workdir of its own.
"""

from dataclasses import replace

from demo import EXPERIMENT as CROPS

from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.mining.config import FunnelConfig

EXPERIMENT = replace(
    CROPS,
    name="ladder",
    title="CroPS, pure ladder",
    workdir="runs/demo_ladder",
    mining=replace(CROPS.mining, funnel=FunnelConfig(alpha=CROPS.mining.threshold.alpha)),
    loss=HInfoNCEConfig(),
    input=replace(CROPS.input, known_positives=64),
)
