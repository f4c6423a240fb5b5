"""A checkpoint of Qwen2.5-0.5B's true shape: loads sharded without a second copy in memory; gives torch's states."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.interop, pytest.mark.slow]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from crops_jax.models import hf_config  # noqa: E402
from crops_jax.models.config import QWEN2_5_0_5B  # noqa: E402

HERE = Path(__file__).parent
QWEN2 = transformers.Qwen2Config(
    vocab_size=151936,
    hidden_size=896,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator[Path]:
    """float32, 1.98 GB: tensors are drawn and written one at a time, so that the test itself needs little memory."""
    folder = tmp_path_factory.mktemp("qwen2_5_0_5b")
    QWEN2.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in transformers.Qwen2Model(QWEN2).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[f"model.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its buffer
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            around = 1.0 if name.endswith("norm.weight") else 0.0
            file.write(around + np.float32(0.02) * rng.standard_normal(shape, np.float32))
    yield folder
    (folder / "model.safetensors").unlink()  # pytest keeps the folders of three sessions


IDS = np.random.default_rng(1).integers(0, QWEN2.vocab_size, (8, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def theirs(checkpoint) -> np.ndarray:
    model = transformers.Qwen2Model.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS).long()).last_hidden_state.numpy()


@pytest.mark.parametrize(("tensor", "table"), [(1, [151936, 112]), (2, [75968, 224])])
def test_it_loads_on_eight_devices_within_1_3_times_the_file_and_equals_transformers(
    checkpoint, theirs, tmp_path, tensor, table
):
    assert hf_config.from_hf_json(checkpoint / "config.json") == QWEN2_5_0_5B
    np.save(tmp_path / "ids.npy", IDS)
    script, ids, out = HERE / "load_sharded.py", tmp_path / "ids.npy", tmp_path / "ours.npy"
    command = [sys.executable, script, checkpoint, ids, out, str(tensor)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said)
    size = (checkpoint / "model.safetensors").stat().st_size
    print(f"peak {found['peak'] / size:.3f} of the file")
    assert found["table"] == table
    assert size > 1.97e9 and found["peak"] <= 1.3 * size
    assert np.abs(np.load(out) - theirs).max() <= 1e-4 * np.abs(theirs).max()
