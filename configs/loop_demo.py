"""The loop on the demo's synthetic world (make loop): ten days in a quarter of an hour on two CPU cores.

A day is a quarter of the demo's train day, and trains a quarter of its steps.
"""

from dataclasses import replace

from demo import EXPERIMENT as DEMO

from crops_jax.comparison.loop_config import Loop
from crops_jax.losses.config import HInfoNCEConfig

LOOP = Loop(
    title="Synthetic world",
    about=(
        "Simulated users of a simulated platform, with full truth. Its search is lexical, dense and a click "
        "memory; a method's retriever takes the place of the dense channel. What users watch in the feed does not "
        "depend on the search, and it correlates with what they need: that is built in."
    ),
    base=replace(
        DEMO, workdir="runs/loop/demo", loss=HInfoNCEConfig(),
        simulate=replace(DEMO.simulate, sessions=replace(DEMO.simulate.sessions, train_sessions=2500)),
        optim=replace(DEMO.optim, warmup_steps=8), train=replace(DEMO.train, steps=40, save_every=40),
        validation=replace(DEMO.validation, every=0),
    ),
)  # fmt: skip
