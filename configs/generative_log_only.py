"""The same generator and the same item ids, trained on the positives that the search log alone has.

It reads the groups of the log-only baseline, which are as large as CroPS's: `demo_log_only.py` comes before this file.
"""

from dataclasses import replace

from demo_log_only import EXPERIMENT as LOG_ONLY
from generative_demo import EXPERIMENT as GENERATOR

EXPERIMENT = replace(
    GENERATOR,
    name="generator_log_only",
    title="generator, log-only positives",
    labels=LOG_ONLY.labels,
    input=replace(GENERATOR.input, records_of=LOG_ONLY.name),
)
