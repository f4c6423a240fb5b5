"""The encoder beside onesug_bart_base.py, on the same logs: MiniLM, in whose vectors prefixes and queries come near.

It reads English; `model` and `text.tokenizer` name another. Writer and encoder have tokenisers of their own.
"""

from dataclasses import replace

from onesug_bart_base import EXPERIMENT as WRITER

from crops_jax.batches.config import InputConfig
from crops_jax.hub import MINILM_PACKAGE
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models.config import MINILM_L6, DualEncoderConfig
from crops_jax.records import RecordsConfig
from crops_jax.suggestions.arms import AlignedEncoderConfig
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig

EXPERIMENT = replace(
    WRITER,
    name=WRITER.suggest.encoder,
    title="Aligned encoder",
    suggest=AlignedEncoderConfig(),
    text=TextConfig(tokenizer=MINILM_PACKAGE, max_query_tokens=24, max_doc_tokens=24),
    records=RecordsConfig(shards=16),
    input=InputConfig(batch_queries=1024, docs_per_query=1, shards=16),
    model=DualEncoderConfig(backbone=MINILM_L6, pooling="mean", tie_towers=True, init_from=MINILM_PACKAGE),
    loss=HInfoNCEConfig(),
    optim=OptimConfig(learning_rate=5e-5, tau_learning_rate=1e-3, warmup_steps=100, schedule="linear"),
    train=TrainConfig(steps=2_000, save_every=500),
)
