"""Compiled programs are kept on accelerators, where nobody has said otherwise."""

import jax
import pytest

from crops_jax.config import Experiment
from crops_jax.runs.compiled import keep_compiled


@pytest.fixture
def cache(monkeypatch):
    """JAX's own settings, put back after the test."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield monkeypatch
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_for_an_accelerator_are_kept_beside_the_data_set(cache, tmp_path):
    cache.setattr(jax, "default_backend", lambda: "tpu")
    assert keep_compiled(Experiment(workdir=str(tmp_path))) == tmp_path / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")


def test_nothing_is_kept_on_cpu_and_ones_own_choice_stays(cache, tmp_path):
    experiment = Experiment(workdir=str(tmp_path))
    assert keep_compiled(experiment) is None and jax.config.jax_compilation_cache_dir is None
    cache.setattr(jax, "default_backend", lambda: "gpu")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    assert keep_compiled(experiment) is None and jax.config.jax_compilation_cache_dir == "elsewhere"
