"""What a sentence-transformers folder says, old and new, and what is refused by name; heads by hand."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from crops_jax.errors import InputError
from crops_jax.models import sentence_folder
from crops_jax.models.hub_tokenizer import read_tokenizer
from crops_jax.models.sentence_folder import Module
from crops_jax.models.sentence_head import Head, load_head

V6 = "sentence_transformers.sentence_transformer.modules"
NEW = ["sentence_transformers.base.modules.transformer.Transformer", f"{V6}.pooling.Pooling",
       "sentence_transformers.base.modules.normalize.Normalize"]  # fmt: skip
OLD = [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def _write(folder: Path, files: dict) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    return folder


def _modules(kinds: list[str]) -> list[dict]:
    paths = ["", *(f"{i}_{kind.rpartition('.')[2]}" for i, kind in enumerate(kinds) if i)]
    return [{"idx": i, "name": str(i), "path": p, "type": k} for i, (p, k) in enumerate(zip(paths, kinds, strict=True))]


def _version_6(folder: Path, **more) -> Path:
    return _write(folder, {
        "modules.json": _modules(NEW),
        "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True},
        "2_Normalize/config.json": {"module_input_name": "sentence_embedding",
                                    "module_output_name": "sentence_embedding"},
        "sentence_bert_config.json": {"transformer_task": "feature-extraction", "modality_config": TEXT,
                                      "module_output_name": "token_embeddings", "unpad_inputs": False},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "6.2.0"}, "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        "tokenizer_config.json": {"model_max_length": 48},
        "config.json": {"max_position_embeddings": 64},
    } | more)  # fmt: skip


def test_a_folder_of_version_6(tmp_path):
    said = sentence_folder.read(_version_6(tmp_path))
    assert (said.pooling, said.include_prompt, said.max_tokens, said.lower_case) == (("mean",), True, 48, False)
    assert [module.kind for module in said.modules] == ["Normalize"]
    assert said.query_prompt() == said.document_prompt() == ""


def test_a_folder_of_version_2_whose_transformer_has_a_folder_of_its_own(tmp_path):
    modules = _modules(OLD)
    modules[0]["path"] = "0_Transformer"
    said = sentence_folder.read(_write(tmp_path, {
        "modules.json": modules,
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_cls_token": True,
                                  "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True},
    }))  # fmt: skip
    assert said.transformer == tmp_path / "0_Transformer"
    assert (said.pooling, said.max_tokens, said.lower_case) == (("cls", "max"), 256, True)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 99}}, 99),
        ({"sentence_bert_config.json": {"max_seq_length": 99, "tokenizer_args": {"model_max_length": 12}}}, 12),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 48),
        ({"tokenizer_config.json": {"model_max_length": 1000000000000000019884624838656}}, 64),
        ({"tokenizer_config.json": {}, "config.json": {}}, None),
    ],
)
def test_where_the_longest_text_is_said(files, limit, tmp_path):
    assert sentence_folder.read(_version_6(tmp_path, **files)).max_tokens == limit


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "q: ", "document": "d: "}, None, "q: ", "d: "),
        ({"query": "q: ", "passage": "p: ", "document": ""}, None, "q: ", "p: "),
        ({"query": "q: ", "document": "d: ", "other": "o: "}, "other", "q: ", "d: "),
        ({"query": "", "document": "", "other": "o: "}, "other", "o: ", "o: "),
        ({"query": "q: "}, "query", "q: ", "q: "),
        ({"other": "o: "}, None, "", ""),
        (None, None, "", ""),
    ],
)
def test_which_prompt_stands_before_queries_and_documents(prompts, default, query, document, tmp_path):
    about = {"prompts": prompts, "default_prompt_name": default}
    said = sentence_folder.read(_version_6(tmp_path, **{"config_sentence_transformers.json": about}))
    assert (said.query_prompt(), said.document_prompt()) == (query, document)


POOLING, READING, ABOUT = "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modules.json": _modules([OLD[0], "sentence_transformers.models.WeightedLayerPooling", OLD[1]])},
         r"begins with \['Transformer', 'WeightedLayerPooling'\]; Transformer, then Pooling is needed"),
        ({"modules.json": _modules(["sentence_transformers.models.Router"])}, r"begins with \['Router'\]"),
        ({"modules.json": _modules(["sentence_transformers.models.BoW", OLD[1]])}, r"begins with \['BoW', 'Pooling'\]"),
        ({"modules.json": _modules([*OLD[:2], "sentence_transformers.models.LSTM"])}, "module 2, LSTM, is not impl"),
        ({"modules.json": _modules([*OLD[:2], "custom_st.Normalize"])},
         "module 2 is 'custom_st.Normalize', code of the folder's own, which is never run"),
        ({"modules.json": [*_modules(OLD)[:1], {**_modules(OLD)[1], "path": "../elsewhere"}]},
         "'../elsewhere': a module must stay inside the folder"),
        ({"modules.json": [{**_modules(OLD)[0], "kwargs": ["task"]}, *_modules(OLD)[1:]]},
         r"module 0, Transformer, takes arguments at every call, \['task'\]"),
        ({"modules.json": {"a": 1}}, "holds a dict, where a list is needed"),
        ({"2_Normalize/config.json": {"module_input_name": "token_embeddings"}}, "works on token_embeddings; only sen"),
        ({POOLING: {"pooling_mode": "attention"}}, r"pools by \['attention'\]; cls, max, mean"),
        ({POOLING: {"pooling_mode": "cls", "pooling_mode_mean_tokens": True}}, r"'cls', but the switches say \['mean'"),
        ({POOLING: {"pooling_mode": "mean", "layer_start": 4}}, "Pooling: layer_start = 4 is unknown"),
        ({READING: {"transformer_task": "fill-mask"}}, "transformer_task = 'fill-mask' is not implemented"),
        ({READING: {"modality_config": {**TEXT, "message": {}}}}, "modality_config = .*'message'"),
        ({READING: {"processing_kwargs": {"text": {"max_length": 8}}}}, "processing_kwargs = .* is not implemented"),
        ({READING: {"config_args": {"is_decoder": True}}}, "config_args.is_decoder = True is not implemented"),
        ({READING: {"query_length": 32}}, "query_length = 32 is not implemented"),
        ({READING: {"max_seq_length": "many"}}, "the longest text has 'many' tokens"),
        ({READING: {"max_seq_length": float("inf")}}, "the longest text has inf tokens"),
        ({READING: {"model_args": ["x"]}}, r"sentence_bert_config.json: model_args = \['x'\] is no dictionary"),
        ({POOLING: {"pooling_mode": 3}}, "1_Pooling/config.json: pooling_mode = 3 is no text or list of texts"),
        ({POOLING: {"pooling_mode": [["mean"]]}}, "pools by .*; cls, max, mean"),
        ({ABOUT: {"default_prompt_name": ["query"]}}, r"default_prompt_name = \['query'\] is no text"),
        ({ABOUT: {"model_type": "SparseEncoder"}}, "holds a SparseEncoder; a SentenceTransformer"),
        ({ABOUT: {"similarity_fn_name": "euclidean"}}, "compared by euclidean; only the cosine"),
        ({ABOUT: {"similarity_fn_name": "dot"}, "modules.json": _modules(OLD[:2])}, "compared by dot; only the cosine"),
        ({ABOUT: {"prompts": {"query": 1}}}, "is no dictionary of texts"),
        ({ABOUT: {"prompts": {"a": "b"}, "default_prompt_name": "c"}}, r"is 'c', which is none of the prompts \['a'\]"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(files, said, tmp_path):
    with pytest.raises(InputError, match=said):
        sentence_folder.read(_version_6(tmp_path, **files))


@pytest.mark.parametrize(("side", "said"), [(1, "= 1 is no text"), ("middle", "= 'middle' is neither left nor right")])
def test_a_side_that_is_none_is_refused(side, said, tmp_path):
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, {"tokenizer_config.json": {"truncation_side": side}})
    with pytest.raises(InputError, match=f"tokenizer_config.json: truncation_side {said}"):
        read_tokenizer(tmp_path, 8, lower_case=False, rows=1 << 20)


def test_a_token_without_a_row_of_the_model_is_refused(tmp_path):
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 3}, "a"))
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    read_tokenizer(tmp_path, 8, lower_case=False, rows=4)
    with pytest.raises(InputError, match="has 4 tokens, and the model 3 rows for them"):
        read_tokenizer(tmp_path, 8, lower_case=False, rows=3)


def test_all_problems_of_a_folder_are_named_at_once(tmp_path):
    files = {POOLING: {"pooling_mode": "other"}, READING: {"query_expansion": {}}, ABOUT: {"model_type": "X"}}
    files["modules.json"] = _modules([*OLD[:2], "sentence_transformers.models.CNN"])
    with pytest.raises(InputError) as error:
        sentence_folder.read(_version_6(tmp_path, **files))
    words = ("CNN", "other", "query_expansion", "holds a X")
    assert all(word in problem for word, problem in zip(words, error.value.problems, strict=True))
    (tmp_path / "modules.json").unlink()
    with pytest.raises(InputError, match="no such file: this is no sentence-transformers folder"):
        sentence_folder.read(tmp_path)


HIDDEN = jnp.array([[[1.0, 0.0], [0.0, 2.0], [-3.0, 1.0], [9.0, 9.0]]])  # the last is padding


@pytest.mark.parametrize(
    ("mode", "skipped", "vector"),
    [
        ("cls", 0, [1, 0]),
        ("max", 0, [1, 2]),
        ("mean", 0, [-2 / 3, 1]),
        ("mean_sqrt_len_tokens", 0, [-2 / 3**0.5, 3 / 3**0.5]),
        ("weightedmean", 0, [(1 - 9) / 6, (4 + 3) / 6]),
        ("lasttoken", 0, [-3, 1]),
        ("cls", 1, [0, 2]),
        ("max", 1, [0, 2]),
        ("mean", 1, [-1.5, 1.5]),
        ("weightedmean", 1, [-9 / 5, 7 / 5]),
        ("cls", 3, [1, 0]),  # nothing is left to pool
        ("lasttoken", 3, [0, 0]),
    ],
)
def test_pooling_by_hand(mode, skipped, vector):
    # Beside the last token, whose length is known, the concatenation shows the length of the vector too.
    both = Head((mode, "lasttoken")).vectors(HIDDEN, jnp.array([3]), skipped)[0]
    wanted = np.array([*vector, *((-3, 1) if skipped < 3 else (0, 0))])
    np.testing.assert_allclose(both, wanted / max(np.linalg.norm(wanted), 1e-9), atol=1e-6)


def _dense(folder: Path, weights: dict, **config) -> Module:
    folder.mkdir()
    save_file({name: np.array(value, np.float32) for name, value in weights.items()}, folder / "model.safetensors")
    return Module("Dense", folder, config)


def test_dense_and_layer_norm_by_hand(tmp_path):
    dense = _dense(tmp_path / "2_Dense", {"linear.weight": [[1, 0], [1, 1], [0, 2]], "linear.bias": [0, 0, 1]},
                   in_features=2, out_features=3, activation_function="torch.nn.modules.activation.ReLU")  # fmt: skip
    norm = _dense(tmp_path / "3_LayerNorm", {"norm.weight": [1, 1, 2], "norm.bias": [0, 0, 0]})
    cls = (jnp.array([[[-3.0, 4.0]]]), jnp.array([1]))
    head = load_head(("cls",), (dense,), 2)  # relu(-3, 1, 9) = 0, 1, 9
    assert head.width(2) == 3
    np.testing.assert_allclose(head.vectors(*cls)[0], np.array([0, 1, 9]) / 82**0.5, atol=1e-6)
    head = load_head(("cls",), (dense, Module("LayerNorm", norm.folder, {"dimension": 3})), 2)
    centred = np.array([-10, -7, 17]) / 3 * [1, 1, 2]
    np.testing.assert_allclose(head.vectors(*cls)[0], centred / np.linalg.norm(centred), atol=1e-5)


def test_a_dense_that_is_not_understood_is_refused(tmp_path):
    weights = {"linear.weight": [[1, 0]], "linear.bias": [0]}
    fits = {"in_features": 2, "out_features": 1}
    for number, (config, said) in enumerate([
        ({**fits, "activation_function": "torch.nn.modules.activation.Softmax"}, "Softmax' is not implemented"),
        ({**fits, "activation_function": "mine.Tanh"}, "'mine.Tanh' is not implemented"),
        ({**fits, "in_features": 3}, "maps 3 features to 1, 2 come from the module before"),
        ({**fits, "scale": 2}, "scale = 2 is unknown"),
        ({**fits, "bias": False}, "linear.bias: unexpected"),
        ({"in_features": 2, "out_features": 4}, r"linear.weight: shape \(1, 2\), expected \(4, 2\)"),
    ]):  # fmt: skip
        with pytest.raises(InputError, match=said):
            load_head(("cls",), (_dense(tmp_path / str(number), weights, **config),), 2)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"pytorch_model\.bin are pickles, which are never read"):
        load_head(("cls",), (Module("Dense", pickled, fits),), 2)
