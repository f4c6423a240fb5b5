"""Eight CPU devices stand in for an accelerator machine; set before anything imports jax."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# Tests compile far more than they compute: at LLVM's level 1 compilation takes half the time. The scheduler is switched
# off because a CPU executable that comes from the compilation cache no longer keeps its collectives in order: devices
# enter independent ones crosswise and wait for each other for ever.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# What was compiled once is kept in the environment, for all workers, the processes that tests start, and the next run.
# The oldest entries go when it has grown too large.
in_environment = sys.prefix != sys.base_prefix
cache = Path(sys.prefix) / "test-cache" if in_environment else Path(tempfile.gettempdir()) / "crops-jax-test-cache"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Each executable holds some tens of memory maps, and a module can add 20,000. Linux gives a process 65,530; XLA dies of
# the next one.
FULL_OF_MAPS = 10_000


@pytest.fixture(scope="module", autouse=True)
def maps_for_the_next_module():
    yield
    maps = Path("/proc/self/maps")  # Linux's alone
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > FULL_OF_MAPS:
        sys.modules["jax"].clear_caches()


class Scheduler(LoadFileScheduling):
    """A file's tests go to one worker, and a worker that dies costs its test, not the run.

    pytest-xdist 3.8 hands out again what a dead worker had finished, and a worker that holds one test alone waits for
    the next before it begins: the run stands still for ever (its issues 1378 and 1327).
    """

    def remove_node(self, node):
        of_node = self.assigned_work[node]
        self.assigned_work[node] = {file: tests for file, tests in of_node.items() if not all(tests.values())}
        return super().remove_node(node)

    def _reschedule(self, node):
        super()._reschedule(node)
        if not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config, log):
    return Scheduler(config, log)
