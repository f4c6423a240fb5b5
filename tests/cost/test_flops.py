"""Analytic FLOPs against numbers worked out by hand, and the table of chips."""

import pytest

from crops_jax.cost.chips import GIB, chip_of, topology_problem
from crops_jax.cost.flops import Texts, projection_parameters, tower_flops, train_step_flops
from crops_jax.models.config import (
    MINILM_L6,
    QWEN2_5_0_5B,
    QWEN2_5_1_5B,
    QWEN2_5_7B,
    DualEncoderConfig,
    LoraConfig,
    SparseMlpConfig,
)
from crops_jax.text.hashed_ids import IdConfig


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [
        # The published non-embedding parameters, less norms (49 vectors) and the biases of q, k, v.
        (QWEN2_5_0_5B, 357_898_112 - 49 * 896 - 24 * (896 + 2 * 128)),
        (QWEN2_5_1_5B, 1_310_340_608 - 57 * 1536 - 28 * (1536 + 2 * 256)),
        (QWEN2_5_7B, 6_525_621_760 - 57 * 3584 - 28 * (3584 + 2 * 512)),
        (MINILM_L6, 6 * (4 * 384 * 384 + 2 * 384 * 1536)),
    ],
)
def test_projection_parameters(backbone, weights):
    assert projection_parameters(backbone) == weights


def test_a_step_is_six_flops_a_weight_and_token_and_twelve_a_pair_of_slots_and_width():
    config = DualEncoderConfig(backbone=QWEN2_5_0_5B)
    queries, documents = Texts(tokens=1_000, context=64, texts=10), Texts(tokens=7_000, context=128, texts=50)
    weights = 6 * 357_826_560 * 8_000
    attention = 12 * 24 * 896 * (1_000 * 64 + 7_000 * 128)
    assert train_step_flops(config, queries, documents) == weights + attention + 6 * 10 * 50 * 896


def test_lora_saves_the_gradient_of_the_frozen_weights():
    plain = DualEncoderConfig(backbone=QWEN2_5_0_5B)
    adapted = DualEncoderConfig(backbone=QWEN2_5_0_5B, lora=LoraConfig(rank=8, projections=("q", "v")))
    queries, documents = Texts(tokens=1_000, context=64, texts=10), Texts(tokens=7_000, context=128, texts=50)
    adapters = 24 * 8 * ((896 + 896) + (896 + 128))
    saved = train_step_flops(plain, queries, documents) - train_step_flops(adapted, queries, documents)
    assert saved == 2 * 8_000 * (357_826_560 - 3 * adapters)


def test_the_sparse_towers_read_their_own_fields():
    sparse = SparseMlpConfig(IdConfig(4, 5, 4, 4), table_width=8, hidden=(16,), width=4)
    rows = Texts(tokens=3, context=1, texts=3)
    assert tower_flops(sparse, rows, "query") == 2 * 3 * (2 * 8 * 16 + 16 * 4)  # an id and a bag
    assert tower_flops(sparse, rows, "document") == 2 * 3 * (3 * 8 * 16 + 16 * 4)  # an id and two bags


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v5p", "TPU v5p"), ("TPU v6 lite", "TPU v6e"),
        ("TPU7x", "TPU7x"), ("TPU v5 lite pod", "TPU v5e"), ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100 80GB"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"),
    ],
)  # fmt: skip
def test_device_kinds_are_known_by_their_longest_match(kind, name):
    assert chip_of(kind).name == name


@pytest.mark.parametrize(
    "kind",
    ["cpu", "NVIDIA GeForce RTX 4090", "NVIDIA L40", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA"],
)
def test_an_unknown_device_has_no_peak_even_if_its_name_begins_like_a_known_one(kind):
    assert chip_of(kind) is None


def test_hbm_is_that_of_the_data_sheet():
    assert chip_of("TPU v5 lite").hbm_bytes == 16 * GIB


@pytest.mark.parametrize(
    "name", ["v5e:2x2", "v5e:4x4", "v5e:16x16", "v4:2x2x4", "v5p:2x2x2", "v6e:16x16", "tpu7x:2x2x2"]
)
def test_topologies_that_exist(name):
    assert topology_problem(name) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [("v5litepod-16", "no topology"), ("v5e", "no topology"), ("v5e:4x4x4", "no topology"), ("v99:2x2", "no topology"),
     ("v6e:axb", "no topology"), ("v6e:300x300", "larger than any pod"), ("v5e:0x4", "larger than any pod")],
)  # fmt: skip
def test_topologies_that_do_not(name, said):
    problem = topology_problem(name)
    assert said in problem and "v5e:AxB up to 16x16" in problem and "v5p:AxBxC up to 16x20x28" in problem
