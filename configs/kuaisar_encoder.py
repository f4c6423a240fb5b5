"""KuaiSAR: a small encoder over the set's own vocabulary, in the place of the sparse model.

The set's token ids are words of a vocabulary that nobody has: a BERT that knows the most frequent of them is trained
from scratch. Logs, candidates and test sets are those of configs/kuaisar_sparse.py.
"""

from dataclasses import replace

from kuaisar_sparse import EXPERIMENT as SPARSE

from crops_jax.batches.config import InputConfig
from crops_jax.models.config import BertConfig, DualEncoderConfig
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig

VOCABULARY = 2**17  # the others are one unknown word; not tuned

EXPERIMENT = replace(
    SPARSE,
    name="encoder",
    title="CroPS, small encoder",
    vocabulary=VOCABULARY,
    vocabulary_of="words",
    text=TextConfig(field_order=SPARSE.text.field_order, max_query_tokens=16, max_doc_tokens=64),
    input=InputConfig(batch_queries=512, docs_per_query=7),
    model=DualEncoderConfig(
        backbone=BertConfig(vocab_size=VOCABULARY, width=256, layers=4, heads=4, ffn=1024, max_positions=64),
        pooling="mean",
        tie_towers=True,
    ),
    optim=OptimConfig(learning_rate=5e-4, warmup_steps=200, schedule="cosine"),
)
