"""The platforms' attention kernels, run step by step on CPU, against XLA's products; and which of them is chosen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import DOCS, SHARDS, packed, texts

from crops_jax.errors import InputError
from crops_jax.models import attention, dual_encoder, kernels
from crops_jax.models.config import DualEncoderConfig, Qwen2Config
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows

splash, triton = partial(kernels.splash, interpret=True), partial(kernels.triton, interpret=True)
ROWS = {
    "packed": [(40, 30, 30, 28)],
    "ragged": [(5, 1, 70), (128,), (64, 63)],
    "padded": [(90,), (17,)],
    "without text": [(), (3,)],
}


def segments(rows, slots):
    """int32[n, slots]: texts of these lengths one after the other, then padding."""
    ids = [np.repeat(np.arange(len(row)) + 1, row) for row in rows]
    return jnp.array([np.pad(row, (0, slots - len(row))) for row in ids], jnp.int32)


def arrays(rows, slots, groups=2, heads=2, size=64):
    """q, k, v and a cotangent of the output that padding does not feel."""
    keys = jax.random.split(jax.random.key(7), 4)
    segment = segments(rows, slots)
    q, target = (jax.random.normal(key, (len(rows), slots, groups, heads, size)) for key in keys[:2])
    k, v = (jax.random.normal(key, (len(rows), slots, groups, size)) for key in keys[2:])
    return q, k, v, segment, jnp.where(segment[:, :, None, None, None] > 0, target, 0)


def with_gradients(kernel, q, k, v, segment, target):
    """Outputs of the texts' tokens, and the gradients of q, k and v."""
    out, pull = jax.jit(lambda *x: jax.vjp(lambda *a: kernel(*a, segment), *x))(q, k, v)
    return jnp.where(segment[:, :, None, None, None] > 0, out, 0), *pull(target)


def plain(causal):
    return lambda q, k, v, segment: attention.attention(q, k, v, attention.attention_mask(segment, causal))


@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kernel", [splash, triton])
def test_a_kernel_is_the_plain_attention_in_value_and_gradients(kernel, causal):
    given = arrays([row for rows in ROWS.values() for row in rows], 128)
    for found, wanted in zip(
        with_gradients(partial(kernel, causal=causal), *given), with_gradients(plain(causal), *given), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=3e-5)


@pytest.mark.parametrize("kernel", [splash, triton])
def test_a_text_may_reach_over_several_blocks(kernel):
    given = arrays([(300, 400, 250)], 1024, groups=1, heads=1)
    for found, wanted in zip(
        with_gradients(partial(kernel, causal=True), *given), with_gradients(plain(True), *given), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=3e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [splash, triton])
def test_two_texts_of_a_row_that_change_places_leave_the_others_bitwise_as_they_are(kernel, causal):
    q, k, v, segment, target = arrays([(30, 40, 30, 20)], 128)
    swapped = np.r_[70:100, 30:70, 0:30, 100:128]
    run = partial(with_gradients, partial(kernel, causal=causal))
    before = run(q, k, v, segment, target)
    after = run(*(x[:, swapped] for x in (q, k, v)), segment, target[:, swapped])
    others = np.r_[30:70, 100:120]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[:, others], b[:, others])
        assert np.any(np.asarray(a[:, :30]) != np.asarray(b[:, :30]))  # the swap did change what it should


@pytest.mark.slow
@pytest.mark.parametrize("name", ["splash", "triton"])
def test_every_device_of_a_mesh_runs_the_kernel_on_its_own_rows_and_heads(name, monkeypatch):
    """Packed texts through the whole tower, over data and tensor axes, in value and gradients."""
    backbone = Qwen2Config(vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_size=64, ffn=64, init_std=0.1)
    documents = packed(texts("tokens", DOCS, 2), SHARDS, rows=1, slots=128)
    platform = {"splash": "tpu", "triton": "gpu"}[name]
    monkeypatch.setattr(attention, "platform", lambda: platform)
    monkeypatch.setattr(kernels, name, {"splash": splash, "triton": triton}[name])

    def vectors(kernel, mesh):
        unroll = "yes" if (kernel, name) == ("auto", "triton") else "no"  # as on a GPU
        config = DualEncoderConfig(backbone, attention=kernel, remat="dots", unroll=unroll, tie_towers=True)

        def total(model, texts):
            found = dual_encoder.encode(model, "document", texts)
            return (found * jnp.arange(32, dtype=jnp.float32)).sum(), found

        with jax.set_mesh(mesh):
            model = dual_encoder.init(config, jax.random.key(0))
            run = jax.jit(jax.value_and_grad(total, has_aux=True))
            return jax.tree.leaves(jax.device_get(run(model, put_rows(documents, mesh))))

    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    for found, wanted in zip(vectors("auto", mesh), vectors("xla", mesh), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "platform", "tokens", "size", "found"),
    [
        ("auto", "cpu", 48, 32, "xla"),
        ("auto", "tpu", 512, 64, "splash"),
        ("splash", "tpu", 128, 128, "splash"),
        ("xla", "tpu", 512, 64, "xla"),
        ("auto", "gpu", 144, 32, "triton"),
        ("auto", "cuda", 512, 64, "triton"),
        ("auto", "rocm", 512, 64, "xla"),
    ],
)
def test_each_platform_has_its_kernel(kernel, platform, tokens, size, found, capsys):
    assert attention.chosen(kernel, platform, tokens, size) == found
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("platform", "tokens", "size", "said"),
    [
        ("tpu", 48, 64, "attention: rows of 48 slots are no multiple of 128, which splash does not take; XLA"),
        ("tpu", 512, 32, "attention: a head size of 32 is none of 64, 128, 256, which splash does not take; XLA"),
        ("gpu", 24, 64, "attention: rows of 24 slots are no multiple of 16, which triton does not take; XLA"),
    ],
)
def test_what_a_kernel_does_not_take_is_said_once_and_computed_otherwise(platform, tokens, size, said, capsys):
    attention._say.cache_clear()
    assert [attention.chosen("auto", platform, tokens, size) for _ in range(2)] == ["xla", "xla"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("kernel", "platform", "tokens", "said"),
    [
        ("splash", "cpu", 512, "model.attention = splash: there is no such kernel on cpu; use auto or xla"),
        ("triton", "tpu", 512, "model.attention = triton: there is no such kernel on tpu; splash is its own; use"),
        ("splash", "tpu", 48, "model.attention = splash: rows of 48 slots are no multiple of 128; change them, or use"),
    ],
)
def test_a_kernel_that_cannot_be_had_is_refused(kernel, platform, tokens, said):
    with pytest.raises(InputError, match=said):
        attention.chosen(kernel, platform, tokens, 64)


def test_the_kernels_lower_for_their_platforms():
    """Without the device: what Pallas itself refuses would be seen here."""
    q, k, v, segment, _ = jax.eval_shape(lambda: arrays(ROWS["ragged"], 512, heads=7))
    for kernel, platform, target in (
        (kernels.splash, "tpu", "tpu_custom_call"),
        (kernels.triton, "cuda", "xla.gpu.triton"),
    ):
        for causal in (False, True):

            def loss(q, k, v, segment, kernel=kernel, causal=causal):
                return kernel(q, k, v, segment, causal=causal).astype(jnp.float32).sum()

            half = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in (q, k, v)]
            traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*half, segment)
            assert target in traced.lower(lowering_platforms=(platform,)).as_text()
