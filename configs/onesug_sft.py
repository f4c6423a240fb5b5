"""OneSug, second arm: a small BART learns to write the query that was taken."""

from dataclasses import replace

from onesug_encoder import EXPERIMENT as ENCODER
from onesug_encoder import VOCABULARY

from crops_jax.batches.config import InputConfig
from crops_jax.models.config import BartConfig
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.config import RQVAEConfig
from crops_jax.training.config import OptimConfig, TrainConfig

EXPERIMENT = replace(
    ENCODER,
    name="sft",
    title="OneSug without RWR",
    suggest=WriterConfig(
        model=BartConfig(
            vocab_size=VOCABULARY, width=64, encoder_layers=2, decoder_layers=2, encoder_heads=4, decoder_heads=4,
            encoder_ffn=256, decoder_ffn=256, max_positions=64, init_std=0.1,
        ),
        encoder="aligned",
        ids=RQVAEConfig(levels=3, codes=32, width=32, steps=600, batch=512),
        recent=3,
        max_source_tokens=48,
        max_query_tokens=16,
    ),
    input=InputConfig(batch_queries=64, docs_per_query=1, shards=4),
    optim=OptimConfig(learning_rate=2e-3, warmup_steps=50, schedule="cosine"),
    train=TrainConfig(steps=600, save_every=300, log_every=20),
)  # fmt: skip
