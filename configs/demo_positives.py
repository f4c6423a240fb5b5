"""The demo with the engine's positives alone: the slots of the low rungs go to the positives of more queries.

As many documents a step, binary labels, and no known positive of a query is one of its negatives. Of all rows of the
synthetic world's benchmark this is the best one on the validation day (docs/ladder.md).
"""

from dataclasses import replace

from demo import EXPERIMENT as CROPS

from crops_jax.labels import caps
from crops_jax.losses.config import InfoNCEBinaryConfig

EXPERIMENT = replace(
    CROPS,
    name="positives",
    title="CroPS, positives alone",
    labels=replace(CROPS.labels, sources=("P0", "P1", "P2", "P3"), caps=caps(P0=1, P1=1, P2=1, P3=1)),
    loss=InfoNCEBinaryConfig(),
    input=replace(
        CROPS.input, batch_queries=288, docs_per_query=4, known_positives=64,
        packing=replace(CROPS.input.packing, query_rows=16),
    ),
)  # fmt: skip
