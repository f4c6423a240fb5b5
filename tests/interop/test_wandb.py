"""The real Weights & Biases package, offline: what `WandbRun` asks of it exists, and the metrics reach its files."""

import pytest

pytestmark = pytest.mark.interop
pytest.importorskip("wandb", reason="wandb is not installed (make interop adds it)")

from crops_jax.training.metric_writers import WandbRun  # noqa: E402


@pytest.mark.filterwarnings("ignore")  # other libraries' deprecations are not ours to fail on
def test_a_resumed_offline_run_is_the_same_run_and_holds_every_line(tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for step, loss in ((5, 0.515625), (6, 0.265625)):
        run = WandbRun("search", "crops", tmp_path, {"seed": 12321})
        run.write(step, {"loss": loss})
        run.close(failed=False)
    known = (tmp_path / "wandb_run_id").read_text()
    parts = sorted((tmp_path / "wandb").glob(f"offline-run-*-{known}*/*.wandb"))
    held = b"".join(part.read_bytes() for part in parts)
    assert all(word in held for word in (b"search", b"crops", b"12321", b"loss", b"0.515625", b"0.265625"))
