"""The whole job in minutes on two CPU cores: a synthetic world and a small Qwen2 trained from scratch."""

from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.config import Experiment
from crops_jax.labels import LabelsConfig, caps
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.mining.config import MiningConfig, QueryLevelConfig, SimulatedLLMConfig, ThresholdConfig
from crops_jax.models.config import DualEncoderConfig, Qwen2Config
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig, ValidationConfig

VOCABULARY = 4096

EXPERIMENT = Experiment(
    name="crops",
    title="CroPS",
    workdir="runs/demo",
    simulated_llm=SimulatedLLMConfig(),
    # all-MiniLM-L6-v2 is not the paper's discriminator, and its cosines are lower. On the world's simulated annotation
    # alpha = 0.35 has precision 0.76 and recall 0.63, 0.6 has 0.95 and 0.09 (python -m crops_jax.calibrate).
    mining=MiningConfig(
        threshold=ThresholdConfig(alpha=0.35, precision=0.761, recall=0.633),
        query_level=QueryLevelConfig(min_query_similarity=0.3),
    ),
    labels=LabelsConfig(caps=caps(P0=1, P1=1, P2=1, P3=1, X3=1, U2=2, F1=1)),
    vocabulary=VOCABULARY,
    text=TextConfig(append_eos=True, max_query_tokens=16, max_doc_tokens=48),
    # About 62 groups a batch, of at most 72.
    input=InputConfig(
        batch_queries=72, docs_per_query=8, shards=4,
        packing=PackingConfig(doc_row_tokens=144, doc_rows=108, query_row_tokens=64, query_rows=4),
    ),
    model=DualEncoderConfig(
        backbone=Qwen2Config(
            vocab_size=VOCABULARY, width=128, layers=1, heads=4, kv_heads=2, head_size=32, ffn=256, causal=False,
            rope_theta=1e4, max_positions=128,
        ),
        pooling="mean",
        tie_towers=True,
        attention_scores=2**19,
    ),
    # Labels 1 to 3 are negatives of the positives and no anchors: chosen on the validation day (docs/ladder.md). The
    # paper's reading, every graded document an anchor: --loss.min_anchor_label=1.
    loss=HInfoNCEConfig(min_anchor_label=4),
    optim=OptimConfig(learning_rate=4e-3, tau_learning_rate=4e-3, warmup_steps=20, schedule="cosine"),
    train=TrainConfig(steps=160, save_every=80, log_every=10),
    validation=ValidationConfig(every=80),
)  # fmt: skip
