import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from crops_jax.parallel.collectives import gather_rows


@pytest.mark.parametrize("names", [("replica", "data", "ring"), ("replica", "data", "depth"), ("data", "depth")])
def test_rows_are_gathered_in_order_and_their_cotangents_summed(names):
    mesh = jax.make_mesh((2, 2, 2)[-len(names) :], names)
    devices, rows = mesh.size, 3 * mesh.size
    x, keys = np.arange(rows * 5, dtype=np.float32).reshape(rows, 5), np.arange(rows, dtype=np.int32)
    weight = np.random.default_rng(0).normal(size=(devices, rows, 5)).astype(np.float32)  # each device's own

    def local(x, keys, weight):
        gathered, all_keys = gather_rows(x, names), gather_rows(keys, names)
        return jnp.sum(gathered * weight[0] * (1 + all_keys)[:, None].astype(jnp.float32))[None], gathered

    def total(x, keys, weight):
        sums, gathered = jax.shard_map(local, in_specs=P(names), out_specs=P(names))(x, keys, weight)
        return jnp.sum(sums), gathered

    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, P(names)) for a in (x, keys, weight)]
        (_, gathered), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(*placed)
    np.testing.assert_array_equal(gathered, np.tile(x, (devices, 1)))
    np.testing.assert_allclose(gradient, weight.sum(axis=0) * (1 + keys)[:, None], atol=1e-4)
