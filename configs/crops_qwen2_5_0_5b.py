"""The paper's settings: both towers from Qwen2.5-0.5B, 128 tokens, tau 0.05 learnable, Adam 2e-5, weight decay 1e-4.

One is not: documents labelled 1 to 3 are no anchors (docs/ladder.md); `--loss.min_anchor_label=1` is the paper's.

Batch size, documents a query, schedule and steps are not in the paper; these fit one host of eight 80 GB GPUs or a
v5e-16. The logs are a platform's own (data/README.md); P3 asks the endpoint named below.
"""

from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.config import Experiment
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.mining.config import EndpointConfig, MiningConfig, WorldKnowledgeConfig
from crops_jax.models.config import QWEN2_5_0_5B, DualEncoderConfig
from crops_jax.retrieval.config import EncodeConfig
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig, ValidationConfig

EXPERIMENT = Experiment(
    workdir="runs/crops_qwen2_5_0_5b",
    world=None,
    # alpha is the paper's 0.6, for the paper's judge. MiniLM, which judges here, passes few pairs then: a tenth of the
    # relevant ones in the demo, a third on Home Depot. See python -m crops_jax.calibrate, then mining.threshold.alpha.
    mining=MiningConfig(
        world_knowledge=WorldKnowledgeConfig(
            endpoint=EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="Qwen/Qwen2.5-14B-Instruct")
        )
    ),
    # Qwen2.5's config and tokenizer disagree on the end-of-text id: 151643 is pinned.
    text=TextConfig(tokenizer="Qwen/Qwen2.5-0.5B", append_eos=True, eos_id=151643),
    # About 256 groups a batch where documents have 64 tokens and queries 8 on average; the log says the padding share.
    input=InputConfig(
        batch_queries=320,
        docs_per_query=16,
        shards=16,
        packing=PackingConfig(doc_row_tokens=512, doc_rows=512, query_row_tokens=128, query_rows=32),
    ),
    model=DualEncoderConfig(
        backbone=QWEN2_5_0_5B, pooling="last", init_from="Qwen/Qwen2.5-0.5B", dtype="bfloat16", remat="full"
    ),
    # Labels 1 to 3 are negatives of the positives and no anchors: chosen on synthetic worlds (docs/ladder.md). The
    # paper's reading, every graded document an anchor: --loss.min_anchor_label=1.
    loss=HInfoNCEConfig(min_anchor_label=4),
    optim=OptimConfig(learning_rate=2e-5, weight_decay=1e-4, warmup_steps=1000, schedule="cosine"),
    train=TrainConfig(steps=100_000, save_every=1000, log_every=20),
    validation=ValidationConfig(every=1000, groups=2048, select="recall"),
    encode=EncodeConfig(batch=2048),
)
