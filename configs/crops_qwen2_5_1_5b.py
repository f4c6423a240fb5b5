"""As `crops_qwen2_5_0_5b`, with Qwen2.5-1.5B in both towers; `make aot` says on which TPUs it fits."""

from dataclasses import replace

from crops_qwen2_5_0_5b import EXPERIMENT as SMALL

from crops_jax.models.config import QWEN2_5_1_5B

EXPERIMENT = replace(
    SMALL,
    name="crops_1_5b",
    title="CroPS, 1.5B",
    workdir="runs/crops_qwen2_5_1_5b",
    text=replace(SMALL.text, tokenizer="Qwen/Qwen2.5-1.5B"),
    model=replace(SMALL.model, backbone=QWEN2_5_1_5B, init_from="Qwen/Qwen2.5-1.5B"),
)
