"""The demo's sparse model: an MLP over hashed ids, on CroPS's own groups and with its own loss."""

from dataclasses import replace

from demo import EXPERIMENT as CROPS

from crops_jax.models.config import DualEncoderConfig, SparseMlpConfig
from crops_jax.text.hashed_ids import IdConfig

EXPERIMENT = replace(
    CROPS,
    name="sparse",
    title="CroPS, sparse model",
    model=DualEncoderConfig(backbone=SparseMlpConfig(ids=IdConfig(query_bits=13, video_bits=14, keyword_bits=13))),
    input=replace(CROPS.input, batch_queries=64, packing=None),
    optim=replace(CROPS.optim, learning_rate=1e-3, table_learning_rate=1e-2),
    train=replace(CROPS.train, steps=600, save_every=300),
    validation=replace(CROPS.validation, every=300),
)
