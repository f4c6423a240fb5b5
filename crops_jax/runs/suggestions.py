"""From an arm of an experiment on suggestions to its records, its encoder, and what suggests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa

from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.models.bart import Bart
from crops_jax.models.config import Tower
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel.sharding import make_mesh
from crops_jax.progress import bar
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.runs.featurizer import tokenizer_of
from crops_jax.runs.folder import read_run
from crops_jax.runs.suggestion_writer import WriterTask
from crops_jax.runs.trained import trained_experiment, trained_model
from crops_jax.suggestions.arms import AlignedEncoderConfig, WriterConfig
from crops_jax.suggestions.batches import batch_of
from crops_jax.suggestions.examples import Example, blocks
from crops_jax.suggestions.likelihood import answers_log_probability
from crops_jax.suggestions.nearest import Encode
from crops_jax.suggestions.prefix_queries import read_prefix_queries
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.related import RelatedQueries
from crops_jax.suggestions.searched import dictionary, read_searched
from crops_jax.suggestions.semantic_index import encoder_hash, load_index
from crops_jax.suggestions.writer import Writer
from crops_jax.text.tokenizer import Tokenizer

_RELATED_AT_ONCE = 4_096  # examples whose prefixes are looked up together
_REFERENCED_AT_ONCE = 64  # examples whose answers the reference model reads together


def writer_of(experiment: Experiment) -> WriterConfig:
    """The config of an arm that writes.

    Raises:
      InputError: it does not.
    """
    if not isinstance(experiment.suggest, WriterConfig):
        raise InputError(f"arm {experiment.name!r}", "writes no suggestions; suggest is to be a WriterConfig")
    return experiment.suggest


@dataclass(frozen=True)
class AlignedEncoder:
    """A trained encoder, its two sides, and the hash of its run."""

    prefixes: Encode
    queries: Encode
    hash: str
    model: DualEncoder
    tokenizer: Tokenizer


def aligned_encoder(experiment: Experiment, name: str) -> AlignedEncoder:
    """The encoder that another arm of the experiment's data set aligned.

    Raises:
      InputError: that arm is not trained, or aligns no encoder.
    """
    saved, _ = read_run(experiment.arm("train", name))
    if not isinstance(saved.suggest, AlignedEncoderConfig):
        raise InputError(f"suggest.encoder = {name!r}", "that arm aligned no encoder (AlignedEncoderConfig)")
    arm = trained_experiment(replace(saved, workdir=experiment.workdir, name=name))
    mesh, featurizer = make_mesh(experiment.mesh), tokenizer_of(arm)
    with jax.set_mesh(mesh):
        model = trained_model(arm, mesh)

    def prefixes(texts: Sequence[str]) -> np.ndarray:
        return encoded("query", featurizer.encode_queries(texts))

    def queries(texts: Sequence[str]) -> np.ndarray:
        return encoded("document", featurizer.encode_documents(texts))

    def encoded(tower: Tower, rows: tuple) -> np.ndarray:
        with jax.set_mesh(mesh):
            return encode_rows(model, tower, as_rows(rows), arm.encode, mesh, "encode queries")

    return AlignedEncoder(prefixes, queries, encoder_hash(arm.arm_folder("train")), model, featurizer)


def encoder_of(experiment: Experiment) -> AlignedEncoder | None:
    """The encoder with which an arm that writes finds related queries; None where it reads none."""
    name = writer_of(experiment).encoder
    return aligned_encoder(experiment, name) if name else None


def related_queries(experiment: Experiment, encoder: AlignedEncoder, prefix_query: pa.Table) -> RelatedQueries:
    """What looks up related queries for an arm that writes, with the encoder of `encoder_of`.

    Args:
      prefix_query: the pairs of the mined day (`read_prefix_queries`).
    """
    index = load_index(index_folder(experiment), encoder.hash)
    return RelatedQueries(index, encoder.prefixes, prefix_query, writer_of(experiment).related)


def index_folder(experiment: Experiment) -> Path:
    """Where the semantic index of an arm that writes lies: beside its encoder, for all arms that have this one."""
    return experiment.arm("semantic_index", writer_of(experiment).encoder)


def with_related(
    examples: Iterable[Example], related: RelatedQueries, alone: Mapping[str, Collection[str]]
) -> Iterator[Example]:
    """The examples with the queries related to their prefixes, as if the example's own request were not in the log.

    What co-occurs with a prefix because of one request says to that request's example what was taken in it. Nothing
    does so on a later day, least of all for a prefix that nobody typed before.

    Args:
      alone: request_id -> queries that this request alone shows to belong to its prefix (`shown_by_one`).
    """
    for block in blocks(examples, _RELATED_AT_ONCE):
        apart = [alone.get(example.request_id, ()) for example in block]
        found = related.of([example.prefix for example in block], apart)
        yield from (replace(example, related=near) for example, near in zip(block, found, strict=True))


def with_reference(examples: Iterable[Example], model: Bart, text: WriterText) -> Iterator[Example]:
    """The examples with what a model says of their answers: the reference of `rwr`, computed once."""
    said_of = jax.jit(partial(answers_log_probability, config=text.config))
    with bar("what the reference says of answers", unit="example") as shown:
        for block in blocks(examples, _REFERENCED_AT_ONCE):
            filled = [block[n % len(block)] for n in range(_REFERENCED_AT_ONCE)]  # one shape, compiled once
            said = np.asarray(said_of(model, batch_of(filled, text)), np.float32)
            for example, of_answers in zip(block, said, strict=False):
                yield replace(example, reference=of_answers[: 1 + len(example.rejected)])
            shown.update(len(block))


def trained_writer_model(experiment: Experiment, name: str) -> Bart:
    """The weights of a trained arm that writes, on this host.

    Raises:
      InputError: it is not trained, or its writer has another shape.
    """
    config = writer_of(experiment)
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        model = WriterTask(experiment, config).restored(experiment.arm("train", name), mesh)
    return jax.tree.map(np.asarray, model)


def trained_writer(experiment: Experiment, encoder: AlignedEncoder | None) -> Writer:
    """The trained arm as something that suggests.

    Args:
      encoder: that of `encoder_of`.
    """
    config, related = writer_of(experiment), None
    if encoder is not None:
        pairs = read_prefix_queries(experiment.ready("mined_suggestions"))
        related = related_queries(experiment, encoder, pairs).of
    text = WriterText(tokenizer_of(experiment), config)
    model = trained_writer_model(experiment, experiment.name)
    known = dictionary(read_searched(experiment.ready("mined_suggestions"))) if config.known else None
    return Writer(model, text, related, known)
