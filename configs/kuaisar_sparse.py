"""KuaiSAR: the sparse model over the set's own anonymous token ids; P0, P1, P2 and X3 of the real logs.

First turn the set into logs (data/kuaisar/README.md):
    python data/kuaisar/recipe.py PATH/KuaiSAR_v2 --out runs/kuaisar/logs

The set tells nothing of what was ranked and not shown (no U2, no F1), and no language model reads token ids (no P3). No
pre-trained theta does either: it is the share of the query's tokens that the caption has.
"""

from crops_jax.batches.config import InputConfig
from crops_jax.config import Experiment
from crops_jax.labels import LabelsConfig, caps
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.mining.config import MiningConfig, SystemLevelConfig, ThresholdConfig, WorldKnowledgeConfig
from crops_jax.models.config import DualEncoderConfig, SparseMlpConfig, ThetaConfig
from crops_jax.text.hashed_ids import IdConfig
from crops_jax.text.tokenizer import TextConfig
from crops_jax.training.config import OptimConfig, TrainConfig, ValidationConfig

EXPERIMENT = Experiment(
    name="sparse",
    title="CroPS, sparse model",
    workdir="runs/kuaisar",
    world=None,
    theta=ThetaConfig(source="word_overlap"),
    # A query has few tokens: above 0.6 are 2 of 3, and both of 2. Not measured: the set has no judgments.
    mining=MiningConfig(
        threshold=ThresholdConfig(alpha=0.6),
        system_level=SystemLevelConfig(max_items_per_user=100),
        world_knowledge=WorldKnowledgeConfig(enabled=False),
    ),
    labels=LabelsConfig(sources=("P0", "P1", "P2", "X3"), caps=caps(P0=2, P1=1, P2=1, X3=3)),
    # The caption alone is in the query's vocabulary; the names of categories are keywords, with a table of their own.
    text=TextConfig(field_order=("photo_caption",)),
    input=InputConfig(batch_queries=1024, docs_per_query=7),
    # 454 k queries have rows of their own; of 6 M items some share one, and are told apart by their tokens.
    model=DualEncoderConfig(
        backbone=SparseMlpConfig(ids=IdConfig(query_bits=20, video_bits=22, keyword_bits=14, term_bits=18))
    ),
    loss=HInfoNCEConfig(min_anchor_label=4),
    optim=OptimConfig(learning_rate=1e-3, table_learning_rate=1e-2, warmup_steps=100, schedule="cosine"),
    train=TrainConfig(steps=4000, save_every=1000, log_every=50),
    validation=ValidationConfig(every=1000),
)
