"""The Home Depot baseline: the same data, model, loss and budget, with the search log's own samples alone."""

from dataclasses import replace

from homedepot_minilm import EXPERIMENT as CROPS

from crops_jax.labels import LOG_ONLY

EXPERIMENT = replace(
    CROPS, name="log_only", title="log-only baseline", labels=replace(CROPS.labels, sources=LOG_ONLY)
)
