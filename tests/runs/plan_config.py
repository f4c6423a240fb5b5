"""A small experiment of the shape that is trained: two towers, packed rows, bfloat16, a width that no tile divides."""

from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.config import Experiment
from crops_jax.models.config import DualEncoderConfig, Qwen2Config

EXPERIMENT = Experiment(
    name="plan",
    world=None,
    input=InputConfig(
        batch_queries=32,
        docs_per_query=8,
        shards=16,
        packing=PackingConfig(doc_row_tokens=256, doc_rows=32, query_row_tokens=64, query_rows=16),
    ),
    model=DualEncoderConfig(
        backbone=Qwen2Config(vocab_size=4096, width=448, layers=3, heads=4, kv_heads=2, head_size=64, ffn=1024),
        dtype="bfloat16",
    ),
)
