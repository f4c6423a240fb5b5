"""The ids that a generator writes, as a folder of its arm: made of the vectors of the encoder that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.compute as pc

from crops_jax.artifacts.manifest import require_made_from
from crops_jax.config import Experiment, to_json
from crops_jax.engines.table_rows import take_rows
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.item_ids import ItemIds, read_item_ids, write_item_ids
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import read_table
from crops_jax.parallel.sharding import make_mesh
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.retrieval.vectors import Vectors
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.folder import read_run
from crops_jax.runs.trained import MADE_BY_ENCODE, read_embeddings, trained_experiment, trained_model
from crops_jax.text.featurizer import encode_documents
from crops_jax.text.tokenizer import document_texts

_MADE_BY = "python -m crops_jax.pipeline --configs FILE..."


def generator_of(experiment: Experiment) -> GeneratorConfig:
    """The config of an arm that writes item ids.

    Raises:
      InputError: it does not.
    """
    if not isinstance(experiment.suggest, GeneratorConfig):
        raise InputError(f"arm {experiment.name!r}", "writes no item ids; suggest is to be a GeneratorConfig")
    return experiment.suggest


def settings(experiment: Experiment) -> dict[str, Any]:
    """What the ids depend on, besides the vectors."""
    return {"ids": to_json(generator_of(experiment).ids)}


def inputs(experiment: Experiment) -> dict[str, Path]:
    """The items' vectors, the items, and what a language model wrote."""
    embeddings = experiment.arm("embeddings", generator_of(experiment).encoder)
    return {"embeddings": embeddings, "logs": experiment.folder("logs"), "mined": experiment.folder("mined")}


def run(experiment: Experiment) -> Path:
    """Codes items and written documents, and returns the folder.

    Raises:
      InputError: the encoder's vectors are missing or damaged, or of another model or other items than there are now.
    """
    config, target = generator_of(experiment), experiment.arm_folder("item_ids")
    saved, _ = read_run(experiment.arm("train", config.encoder))
    encoder = trained_experiment(replace(saved, workdir=experiment.workdir, name=config.encoder))
    require_made_from(encoder.ready("embeddings"), "logs", experiment.ready("logs"), MADE_BY_ENCODE)
    corpus, written = read_embeddings(encoder).read(), _written(encoder)
    write_item_ids(target, corpus, written, config.ids, settings(experiment), inputs(experiment))
    return target


def _written(encoder: Experiment) -> Vectors | None:
    """The documents that a language model wrote, with the vectors that the encoder gives them."""
    table = read_table(encoder.ready("mined") / "knowledge.parquet", columns=["item_id", *TEXT_FIELDS])
    ids, first = np.unique(table["item_id"].to_numpy(), return_index=True)  # written for two queries it is there twice
    if not len(ids):
        return None
    table = take_rows(table, first)
    featurizer, mesh = featurizer_of(encoder), make_mesh(encoder.mesh)
    order = encoder.text.field_order
    texts = [text for batch in table.to_batches() for text in document_texts(batch, order).to_pylist()]
    rows = encode_documents(featurizer, ids.tolist(), pc.fill_null(table["keyword"], "").to_pylist(), texts)
    with jax.set_mesh(mesh):
        model = trained_model(encoder, mesh)
        return Vectors(ids, encode_rows(model, "document", as_rows(rows), encoder.encode, mesh, "encode written"))


def ready_item_ids(experiment: Experiment) -> ItemIds:
    """The ids of an arm, its bytes checked.

    Raises:
      InputError: they are missing or damaged, or were made of other vectors than the encoder has now.
    """
    folder = experiment.ready("item_ids")
    require_made_from(folder, "embeddings", inputs(experiment)["embeddings"], _MADE_BY)
    return read_item_ids(folder)
