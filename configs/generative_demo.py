"""Generative retrieval on the demo's world: a small BART writes item ids for a query, trained on CroPS's positives.

The ids code the vectors of the demo's dual encoder, and its shards are read: `demo.py` comes before this file.
"""

from dataclasses import replace

from demo import EXPERIMENT as CROPS
from demo import VOCABULARY

from crops_jax.batches.config import InputConfig
from crops_jax.generative.config import GeneratorConfig
from crops_jax.models.config import BartConfig
from crops_jax.suggestions.config import RQKMeansConfig
from crops_jax.training.config import OptimConfig, TrainConfig, ValidationConfig

EXPERIMENT = replace(
    CROPS,
    name="generator",
    title="generator, CroPS's positives",
    suggest=GeneratorConfig(
        encoder=CROPS.name,
        ids=RQKMeansConfig(codes=(256, 256), balanced=False, opq_parts=0),
        model=BartConfig(
            vocab_size=VOCABULARY + 640, width=128, encoder_layers=2, decoder_layers=2, encoder_heads=4,
            decoder_heads=4, encoder_ffn=256, decoder_ffn=256, max_positions=64, init_std=0.09,
        ),
    ),
    input=InputConfig(batch_queries=128, docs_per_query=8, shards=4, records_of=CROPS.name),
    optim=OptimConfig(learning_rate=2e-3, warmup_steps=50, schedule="cosine"),
    train=TrainConfig(steps=400, save_every=200, log_every=20),
    validation=ValidationConfig(),
)  # fmt: skip
