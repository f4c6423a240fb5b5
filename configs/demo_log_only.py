"""The demo's baseline: the same data, model, loss and budget, with positives and negatives of the search log alone."""

from dataclasses import replace

from demo import EXPERIMENT as CROPS

from crops_jax.labels import LOG_ONLY

EXPERIMENT = replace(
    CROPS, name="log_only", title="log-only baseline", labels=replace(CROPS.labels, sources=LOG_ONLY)
)
