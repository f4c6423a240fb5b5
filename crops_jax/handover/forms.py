"""Other forms of an exported tower, each replayed against the golden vectors before it is kept.

Both are made from the tower's own folder, so they hold what a server that reads the folder would compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from crops_jax.artifacts.folders import Folder
from crops_jax.batch import Tokens
from crops_jax.errors import InputError, brought_by
from crops_jax.handover.config import Form
from crops_jax.handover.towers import TOWERS, compare_with_golden
from crops_jax.models import hf_import, sentence_encoder
from crops_jax.models.sentence_encoder import SentenceEncoder

ONNX, STABLEHLO = "tower.onnx", "tower.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
# "Compatibility guarantees" of jax.export: what is exported today is read by the jax of half a year from now.
_READ_FOR = timedelta(days=182)
_ONE_FILE = 1 << 30  # bytes of weights; protobuf holds no more than two of these


def write_forms(out: Folder, forms: Sequence[Form]) -> None:
    """Adds `tower.onnx` or `tower.stablehlo` to both tower folders below `out`; `out.counts` tells of them.

    Raises:
      InputError: onnx or onnxruntime is not installed, or a form does not give the golden vectors.
    """
    for tower in TOWERS:
        folder = out.path / f"{tower}_tower"
        encoder = sentence_encoder.load(folder)
        for form in forms:
            match form:
                case "onnx":
                    told = write_onnx(encoder, folder)
                case "stablehlo":
                    told = write_stablehlo(encoder, folder)
            out.counts[f"{tower}_{form}"] = told


def write_onnx(encoder: SentenceEncoder, folder: Path) -> dict[str, Any]:
    """Writes and replays tower.onnx; weights of more than a gigabyte lie beside it in tower.onnx_data."""
    try:
        import onnx
        import onnxruntime

        from crops_jax.handover.onnx_graph import OPSET, tower_graph
    except ImportError as error:
        raise InputError("onnx", f"{error.name} is missing; {brought_by('forms')}") from None
    model, place = tower_graph(encoder.tower, encoder.head.pooling[0]), folder / ONNX
    large = sum(len(constant.raw_data) for constant in model.graph.initializer) > _ONE_FILE
    onnx.save_model(model, place, save_as_external_data=large, location=f"{ONNX}_data", size_threshold=1 << 10)
    onnx.checker.check_model(str(place))
    session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, length: np.ndarray) -> np.ndarray:
        mask = (np.arange(ids.shape[1])[None] < length[:, None]).astype(np.int64)
        return session.run(None, {"input_ids": ids.astype(np.int64), "attention_mask": mask})[0]

    return {"opset": OPSET, "golden_difference": _replayed(encoder, folder, run)}


def write_stablehlo(encoder: SentenceEncoder, folder: Path) -> dict[str, Any]:
    """Writes and replays tower.stablehlo: (weights of model.safetensors by name, int32[b, t] ids, int32[b] lengths) ->
    float32[b, D], for every platform, with free b and t.

    The weights are taken in the file's own number format; all is computed in float32.
    """
    from jax import export

    weights = load_file(folder / "model.safetensors")
    rows, slots = export.symbolic_shape("b, t")
    arguments = (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights),
        jax.ShapeDtypeStruct((rows, slots), jnp.int32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    backbone, head = encoder.tower.config, encoder.head

    @jax.jit
    def vectors(weights: dict[str, jax.Array], ids: jax.Array, length: jax.Array) -> jax.Array:
        tower = hf_import.from_hf({name: leaf.astype(jnp.float32) for name, leaf in weights.items()}, backbone)
        return sentence_encoder.vectors(tower, Tokens(ids, length), head)

    place = folder / STABLEHLO
    place.write_bytes(export.export(vectors, platforms=PLATFORMS)(*arguments).serialize())
    again = export.deserialize(bytearray(place.read_bytes()))
    until = datetime.now(UTC).date() + _READ_FOR
    return {
        "platforms": list(again.platforms),
        "jax": jax.__version__,
        "read_until": until.isoformat(),
        "golden_difference": _replayed(encoder, folder, partial(again.call, weights)),
    }


def _replayed(encoder: SentenceEncoder, folder: Path, run: Callable[[np.ndarray, np.ndarray], Any]) -> float:
    """The largest difference from the golden vectors: all texts in one batch, and each alone."""

    def rows(texts: Sequence[str]) -> np.ndarray:
        found = [e.ids for e in encoder.tokenizer.encode_batch_fast(list(texts))]
        length = np.array([len(ids) for ids in found], np.int32)
        padded = np.zeros((len(found), max(int(length.max()), 1)), np.int32)
        for row, ids in enumerate(found):
            padded[row, : len(ids)] = ids
        return np.asarray(run(padded, length))

    def alone(texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([rows([text]) for text in texts])

    return max(compare_with_golden(folder, rows), compare_with_golden(folder, alone))
