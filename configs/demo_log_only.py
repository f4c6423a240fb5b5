"""The demo baseline: the same data, model, loss and budget, with the search log's own samples alone.

Budget-matched: the slots of P1, P2 and P3 go to more of the log's own documents, so both arms encode as many.
"""

from dataclasses import replace

from demo import EXPERIMENT as CROPS

from crops_jax.labels import LOG_ONLY, caps

EXPERIMENT = replace(
    CROPS,
    name="log_only",
    title="log-only baseline",
    # Its documents are shorter: as many groups a batch in fewer rows.
    input=replace(CROPS.input, packing=replace(CROPS.input.packing, doc_rows=100)),
    labels=replace(CROPS.labels, sources=LOG_ONLY, caps=caps(P0=2, X3=2, U2=2, F1=2)),
)
