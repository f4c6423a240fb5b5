"""Eight CPU devices stand in for an accelerator machine; set before anything imports jax."""

import os
import sys
import tempfile
from pathlib import Path

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
