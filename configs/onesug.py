"""OneSug, third arm: the writer learns to prefer what users took over what they left (RWR, list-wise)."""

from dataclasses import replace

from onesug_sft import EXPERIMENT as SFT

from crops_jax.suggestions.config import RWRConfig
from crops_jax.training.config import OptimConfig, TrainConfig

EXPERIMENT = replace(
    SFT,
    name="onesug",
    title="OneSug",
    suggest=replace(SFT.suggest, start=SFT.name, rwr=RWRConfig()),
    optim=OptimConfig(learning_rate=3e-4, warmup_steps=20, schedule="cosine"),
    train=TrainConfig(steps=200, save_every=200, log_every=10),
)
