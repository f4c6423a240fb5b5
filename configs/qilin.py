"""Qilin: real Chinese queries and notes, the same users in search and feed; towers from Qwen2.5-0.5B.

First turn the set into logs (data/qilin/README.md):
    python data/qilin/recipe.py PATH/Qilin --out runs/qilin/logs

The set tells nothing of what was ranked and not shown: no U2, no F1.
"""

from dataclasses import replace

from crops_qwen2_5_0_5b import EXPERIMENT as PAPER

from crops_jax.labels import LabelsConfig, caps
from crops_jax.mining.config import ThresholdConfig
from crops_jax.models.config import ThetaConfig

EXPERIMENT = replace(
    PAPER,
    workdir="runs/qilin",
    # The default theta reads English. This one reads Chinese; its cosines are high, and without judgments its alpha is
    # a guess: look at what P1 and P2 keep, and at `purity`.
    theta=ThetaConfig(source="BAAI/bge-small-zh-v1.5"),
    mining=replace(PAPER.mining, threshold=ThresholdConfig(alpha=0.6)),
    labels=LabelsConfig(sources=("P0", "P1", "P2", "P3", "X3"), caps=caps(P0=2, P1=2, P2=2, P3=1, X3=9)),
)
