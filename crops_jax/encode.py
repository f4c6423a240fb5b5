"""`python -m crops_jax.encode --config FILE`: encodes the corpus with a trained document tower.

Reads logs/items.parquet and the arm's train folder, writes `embeddings`: item_ids.npy int64[C] in rising order,
vectors.npy float32[C, D] and, where the platform's own ids are hashed, item_ids.parquet with both ids. Finished parts
are kept, so that a killed run continues.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from crops_jax.artifacts import fingerprint, write_folder
from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.logs.tables import write_table
from crops_jax.parallel.sharding import make_mesh
from crops_jax.retrieval.corpus import ID_TABLE, read_corpus
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.runs.compiled import keep_compiled
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.trained import settings, trained_experiment, trained_model
from crops_jax.text.featurizer import encode_documents


def run(experiment: Experiment) -> Path:
    """Encodes every item that has text and returns the embeddings folder."""
    keep_compiled(experiment)
    trained = trained_experiment(experiment)
    train, logs = experiment.arm_folder("train"), experiment.ready("logs")
    target = experiment.arm_folder("embeddings")
    corpus = read_corpus(logs, trained.text.field_order)
    featurizer = featurizer_of(trained)
    size = experiment.encode.part
    parts = _Parts(target.with_name(".embeddings.parts"), f"{fingerprint(train)} {fingerprint(logs)} {size}")
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        model = trained_model(trained, mesh)
        for number, start in enumerate(range(0, len(corpus), size)):
            if not parts.has(number):
                part = corpus.cut(start, start + size)
                rows = encode_documents(featurizer, part.item_ids.tolist(), part.keywords, part.texts)
                rows = as_rows(rows)
                parts.save(number, encode_rows(model, "document", rows, experiment.encode, mesh, "encode corpus"))
    with write_folder(
        target, kind="embeddings", config=settings(trained), inputs={"train": train, "logs": logs}
    ) as out:
        vectors = parts.joined()
        np.save(out / "item_ids.npy", corpus.item_ids)
        np.save(out / "vectors.npy", vectors)
        if (names := corpus.id_table()) is not None:
            write_table(names.schema, names, out / ID_TABLE)
        out.counts.update(items=len(corpus), width=vectors.shape[1], items_without_text=corpus.without_text)
    parts.remove()
    return target


class _Parts:
    """Finished parts of an encoding run, in a folder that belongs to one model and one corpus."""

    def __init__(self, folder: Path, key: str):
        self._folder, name = folder, folder / "key.json"
        if not (name.is_file() and json.loads(name.read_text()) == key):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            name.write_text(json.dumps(key))

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npy"

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def save(self, number: int, vectors: np.ndarray) -> None:
        part = self._folder / ".part.npy"
        np.save(part, vectors)
        part.rename(self._file(number))

    def joined(self) -> np.ndarray:
        return np.concatenate([np.load(f) for f in sorted(self._folder.glob("[0-9]*.npy"))])

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def main() -> None:
    """Encodes the corpus for the experiment of the command line."""
    folder = run(from_command_line("encode"))
    print(f"encoded: {folder}\nnext: python -m crops_jax.build_index --config FILE")


if __name__ == "__main__":
    run_command(main)
