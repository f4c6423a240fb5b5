"""OneSug from facebook/bart-base on a platform's own logs: its first stage, learning to write, for a TPU slice."""

from crops_jax.batches.config import InputConfig
from crops_jax.config import Experiment
from crops_jax.models.config import BART_BASE
from crops_jax.parallel.config import MeshConfig
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig

BART = "facebook/bart-base"

EXPERIMENT = Experiment(
    name="sft",
    title="OneSug without RWR",
    workdir="runs/onesug_bart_base",
    world=None,
    suggest=WriterConfig(
        model=BART_BASE,
        init_from=BART,
        encoder="aligned",  # the arm of onesug_bart_base_encoder.py
        max_source_tokens=128,
        max_query_tokens=24,
        dtype="bfloat16",
        remat="full",
    ),
    text=TextConfig(tokenizer=BART, append_eos=True, eos_token="</s>", max_query_tokens=24, max_doc_tokens=24),
    input=InputConfig(batch_queries=2048, docs_per_query=1, shards=16),
    mesh=MeshConfig(),
    optim=OptimConfig(learning_rate=5e-5, warmup_steps=500, schedule="cosine"),
    train=TrainConfig(steps=20_000, save_every=1_000),
)
