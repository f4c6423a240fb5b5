"""Eight CPU devices stand in for an accelerator machine; set before anything imports jax."""

import os
import tempfile

# Tests compile far more than they compute: at LLVM's level 1 compilation takes half the time. The scheduler is switched
# off because a CPU executable that comes from the compilation cache no longer keeps its collectives in order: devices
# enter independent ones crosswise and wait for each other for ever.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Runs of one session share compiled steps, also across the processes that some tests start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="crops-jax-test-cache-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
