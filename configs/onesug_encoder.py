"""OneSug on the synthetic world, first arm: an encoder in whose vectors prefixes and their queries lie near."""

from dataclasses import replace

from demo import EXPERIMENT as DEMO

from crops_jax.batches.config import InputConfig
from crops_jax.config import Experiment
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models.config import DualEncoderConfig, Qwen2Config
from crops_jax.records import RecordsConfig
from crops_jax.simulate.prefixes import TypingConfig
from crops_jax.suggestions.arms import AlignedEncoderConfig
from crops_jax.suggestions.config import SuggestTestConfig
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig

VOCABULARY = 1024  # small, so that a prefix and the query that it becomes share most tokens

EXPERIMENT = Experiment(
    name="aligned",
    title="Aligned encoder",
    workdir="runs/onesug",
    simulate=replace(DEMO.simulate, typing=TypingConfig(enabled=True)),
    suggest_test=SuggestTestConfig(max_events=4_000, max_next=2_000),
    suggest=AlignedEncoderConfig(),
    vocabulary=VOCABULARY,
    text=TextConfig(append_eos=True, max_query_tokens=16, max_doc_tokens=16),
    records=RecordsConfig(shards=4),
    input=InputConfig(batch_queries=256, docs_per_query=1, shards=4),
    model=DualEncoderConfig(
        backbone=Qwen2Config(
            vocab_size=VOCABULARY, width=64, layers=1, heads=4, kv_heads=2, head_size=16, ffn=128, causal=False,
            rope_theta=1e4, max_positions=32,
        ),
        pooling="mean",
        tie_towers=True,
    ),
    loss=HInfoNCEConfig(),
    optim=OptimConfig(learning_rate=4e-3, tau_learning_rate=4e-3, warmup_steps=20, schedule="cosine"),
    train=TrainConfig(steps=300, save_every=300, log_every=20),
)  # fmt: skip
