"""Puts rows on meshes of two processes with two devices, in several orders of the devices; prints who brought what."""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from crops_jax.parallel import processes
from crops_jax.parallel.sharding import MESH_AXES, put_rows, rows_here, take_rows

processes.initialize()
own = np.array(jax.devices()).reshape(2, 2)  # process, device
for order, sizes in ((own, (1, 4, 1)), (own.T, (1, 4, 1)), (own, (1, 2, 2)), (own.T, (1, 2, 2))):
    mesh = Mesh(order.reshape(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    rows = rows_here(mesh, 8)
    values = 10 * np.stack([rows, rows], axis=1)
    array = put_rows(values, mesh)
    assert np.array_equal(take_rows(array), values)
    whole = multihost_utils.process_allgather(array, tiled=True)
    assert np.array_equal(whole[:, 0], 10 * np.arange(8))
    sys.stdout.write(f"rows {' '.join(map(str, rows))}\n")  # in one piece: the runtime logs into the same pipe
