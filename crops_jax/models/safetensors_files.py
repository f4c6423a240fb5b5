"""Reads tensors out of a folder's safetensors files, slice by slice, without loading the files.

A checkpoint is `model.safetensors`, or shards named by `model.safetensors.index.json`. The format is a length, a JSON
header and one buffer; the buffer is memory-mapped, so that a slice costs its own bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import index
from pathlib import Path

import ml_dtypes
import numpy as np

from crops_jax.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


def open_checkpoint(folder: Path) -> dict[str, Entry]:
    """Tensor name -> `Entry`, over all files of a checkpoint folder.

    Raises:
      InputError: no safetensors checkpoint, or two, or an adapter beside it, which would be left out; a shard is
        missing, a file is cut or damaged, or the index and the shards disagree; of the shards all problems at once.
    """
    if adapters := [name for name in _ADAPTERS if (folder / name).is_file()]:
        mend = "merge it (merge_and_unload().save_pretrained of peft), or name a copy without its files"
        raise InputError(str(folder), f"holds an adapter ({', '.join(adapters)}), which is not read: {mend}")
    if (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
        if (folder / SINGLE).is_file() and {*weight_map.values()} != {SINGLE}:
            said = f"holds {SINGLE}, and {INDEX}, which names other files"
            raise InputError(str(folder), f"{said}; keep the weights that count (transformers reads {SINGLE})")
        return _open_shards(folder, weight_map)
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    hint = f" ({', '.join(pickled[:3])} are pickles, which are never read: convert them)" if pickled else ""
    if len(shards) == 1:
        hint += f"; rename {shards[0]} if these are the weights"
    elif shards:
        hint += f"; get the index, too: it says which tensor is in which of {', '.join(shards[:3])}"
    raise InputError(str(folder), f"holds neither {SINGLE} nor {INDEX}{hint}")


def _weight_map(place: Path) -> dict[str, str]:
    """Tensor -> shard, as an index says."""
    try:
        return {str(tensor): str(shard) for tensor, shard in json.loads(place.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(str(place), f"is no safetensors index ({type(error).__name__}: {error})") from None


def _open_shards(folder: Path, weight_map: Mapping[str, str]) -> dict[str, Entry]:
    place = folder / INDEX
    entries: dict[str, Entry] = {}
    problems = []
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard in ("", ".."):
            problems.append(f"shard {shard!r}: a path must stay inside its folder")
            continue
        try:
            held = _header(folder / shard)
        except InputError as error:
            problems += [f"{shard}: {problem}" for problem in error.problems]
            continue
        # Of two copies in two shards the index says which one counts; a stale one is no tensor of the checkpoint.
        for tensor in sorted(held):
            if tensor not in weight_map:
                problems.append(f"{tensor}: in a shard, but not in the index")
            elif weight_map[tensor] != shard:
                problems.append(f"{tensor}: in {shard}, but the index says {weight_map[tensor]}; keep it there alone")
        entries |= held
    if not problems:
        absent = sorted(weight_map.keys() - entries.keys())
        problems += [f"{name}: in the index, but in no shard" for name in absent]
    if problems:
        raise InputError(str(place), problems)
    return entries


def _header(file: Path) -> dict[str, Entry]:
    """The entries of one file; every tensor's extent is checked against the file's size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise InputError(str(file), f"is cut: {size} bytes, its header alone needs {length + 8}")
            header = dict(json.loads(stream.read(length)).items())
    except FileNotFoundError:
        raise InputError(str(file), "no such file") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(str(file), f"its header is damaged ({error})") from None
    header.pop("__metadata__", None)
    entries, problems = {}, []
    for name, tensor in header.items():
        try:
            begin, end = map(index, tensor["data_offsets"])
            dtype, shape = _DTYPES[tensor["dtype"]], tuple(map(index, tensor["shape"]))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{name}: its header entry is not understood ({type(error).__name__}: {error})")
            continue
        if end - begin != prod(shape) * dtype.itemsize or begin < 0 or 8 + length + end > size:
            problems.append(f"{name}: bytes {begin}..{end} do not fit its shape {shape} or the file of {size} bytes")
        entries[name] = Entry(file, dtype, shape, 8 + length + begin)
    if problems:
        raise InputError(str(file), problems)
    return entries


def view(entry: Entry) -> np.ndarray:
    """The tensor as a read-only view of the file; only what is then sliced out of it is read."""
    raw = np.memmap(entry.file, np.uint8, "r", entry.offset, (prod(entry.shape) * entry.dtype.itemsize,))
    return raw.view(entry.dtype).reshape(entry.shape)


def shape_problems(entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing of some tensors, or has another shape."""
    problems = [f"{name}: missing" for name in shapes if name not in entries]
    return problems + [
        f"{name}: shape {entries[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in entries and entries[name].shape != shape
    ]
