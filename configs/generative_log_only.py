"""The same generator, the same item ids, trained on the positives that the search log alone has."""

from dataclasses import replace

from generative_demo import EXPERIMENT as GENERATOR

from crops_jax.labels import LOG_ONLY

EXPERIMENT = replace(
    GENERATOR,
    name="generator_log_only",
    title="generator, log-only positives",
    input=replace(GENERATOR.input, sources=LOG_ONLY),
)
