"""One folder that a server starts from: towers, vectors, index, ids, the texts to show, evidence, metrics.

```
bundle/  manifest.json                what it was made from, counts, every file with its checksums
         query_tower/ document_tower/ as `export` wrote them
         ids.npy vectors.npy          int64[C] rising, float32[C, D]
         index/                       ScaNN over them, where one was built; else search is exact
         items.arrow                  C rows in the order of the ids: the texts to show
         evidence/                    what training knew (`evidence`), where it may be handed over
         eval/                        results.json, per_query.parquet of the test day
```
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.folders import Folder
from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.engines.table_rows import TableRows
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import PLATFORM
from crops_jax.retrieval.blocks import index_ids
from crops_jax.retrieval.vectors import Embeddings, open_embeddings

ITEMS = "items.arrow"
_ROWS = 1 << 16  # of the texts to show, written at a time


def write_parts(out: Folder, made_from: Mapping[str, Path]) -> None:
    """Copies what other verbs made into a bundle, every byte checked, and writes the texts to show.

    Args:
      made_from: the folders `export`, `embeddings`, `eval`, `logs`, and `index` where there is one.

    Raises:
      InputError: a folder is missing or damaged, or the index holds other documents than the embeddings.
    """
    for name in ("export", "embeddings", "eval", *(["index"] if "index" in made_from else [])):
        verify(made_from[name])
    _copy(made_from["export"], out.path)
    embeddings = open_embeddings(made_from["embeddings"])
    ids = embeddings.ids()
    np.save(out / "ids.npy", ids)
    _write_vectors(embeddings, ids, out / "vectors.npy")
    for name in ("results.json", "per_query.parquet"):
        shutil.copyfile(made_from["eval"] / name, out / f"eval/{name}")
    if "index" in made_from:
        _same_documents(made_from["index"], ids)
        shutil.copytree(made_from["index"], out / "index", copy_function=shutil.copyfile)
    _write_items(made_from["logs"], ids, out / ITEMS)
    out.counts.update(documents=len(ids), width=embeddings.width, search="scann" if "index" in made_from else "exact")


def _copy(export: Path, target: Path) -> None:
    """The files of the export, which the bundle's own manifest names from here on."""
    for entry in read_manifest(export, "export")["files"]:
        place = target / entry["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(export / entry["path"], place)


def _write_vectors(embeddings: Embeddings, ids: np.ndarray, path: Path) -> None:
    """All vectors as one file, in the order of the ids; a part of them is in memory."""
    joined = np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), embeddings.width))
    for of_part, vectors in embeddings.pieces():
        joined[np.searchsorted(ids, of_part)] = vectors
    joined.flush()


def _same_documents(index: Path, ids: np.ndarray) -> None:
    if not np.array_equal(index_ids(index), ids):
        mend = "build it again with `python -m crops_jax.build_index --config FILE`"
        raise InputError(str(index), f"holds other documents than the embeddings; {mend}")


def _write_items(logs: Path, ids: np.ndarray, path: Path) -> None:
    """The fields of the documents as an Arrow file, which is read as it lies.

    In memory are these columns of the table once, and the slice that is written.
    """
    table = open_logs(logs).read("items", columns=["item_id", *TEXT_FIELDS])
    columns = ["item_id", *([PLATFORM["item"]] if PLATFORM["item"] in table.column_names else []), *TEXT_FIELDS]
    place = pc.index_in(pa.array(ids), table["item_id"].combine_chunks())
    if place.null_count:
        raise InputError(f"{logs}: items", f"{place.null_count} of the encoded items are missing; encode them again")
    table, places = table.select(columns), place.to_numpy()
    rows = TableRows(table)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for start in range(0, len(ids), _ROWS):
            writer.write_batch(rows.at(places[start : start + _ROWS]))
