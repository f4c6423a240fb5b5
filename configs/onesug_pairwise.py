"""OneSug with pairs in the place of lists: the winner against each loser alone."""

from dataclasses import replace

from onesug import EXPERIMENT as ONESUG

from crops_jax.suggestions.config import RWRConfig

EXPERIMENT = replace(
    ONESUG,
    name="pairwise",
    title="OneSug, pair-wise",
    suggest=replace(ONESUG.suggest, rwr=RWRConfig(rows="pair")),
)
