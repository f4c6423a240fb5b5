"""Where compiled programs are kept, so that a run that starts again does not compile again."""

from __future__ import annotations

from pathlib import Path

import jax

from crops_jax.config import Experiment


def keep_compiled(experiment: Experiment) -> Path | None:
    """Sets up JAX's persistent compilation cache in WORKDIR/compiled and returns the folder. Call it before anything is
    compiled.

    None, and nothing is done, on CPU, where compiling is quick and a program of several devices that comes from the
    cache may lose the order of its collectives; and where JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE
    say otherwise.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache
    if chosen or jax.default_backend() == "cpu":
        return None
    folder = Path(experiment.workdir).absolute() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
