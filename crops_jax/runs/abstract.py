"""What a training step takes, without any array: shapes, dtypes and shardings, to type-check it or compile it ahead."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.config import Experiment
from crops_jax.models import dual_encoder
from crops_jax.models.config import SparseMlpConfig
from crops_jax.parallel.sharding import RULES, abstract_on
from crops_jax.training.step import TrainState, init_state


def abstract_state(
    experiment: Experiment, optimiser: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> TrainState:
    """The state of this experiment on `mesh`, which must be the ambient one."""
    model = abstract_on(dual_encoder.abstract(experiment.model), mesh)
    shapes = jax.eval_shape(partial(init_state, optimiser=optimiser), model)

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, shapes)


def abstract_batch(experiment: Experiment, mesh: Mesh | AbstractMesh) -> Batch:
    """A batch of this experiment, split over `mesh` by rows.

    Raises:
      InputError: the batch's shards do not divide over the mesh.
    """
    config = experiment.input
    RULES.check_rows(mesh, config.shards, "input.shards")
    queries = config.batch_queries
    docs = queries * config.docs_per_query

    def rows(*shape: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
        spec = RULES.spec(mesh, ("batch",) + (None,) * (len(shape) - 1))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def packed(texts: int, all_rows: int, slots: int) -> PackedTokens:
        tokens = rows(config.shards, all_rows // config.shards, slots)
        places = rows(config.shards, texts // config.shards)
        return PackedTokens(tokens, tokens, tokens, places, places)

    match experiment.model.backbone, config.packing:
        case SparseMlpConfig(ids=ids), _:
            (q_fields, q_bags), (d_fields, d_bags) = ids.query_tables, ids.doc_tables
            query = IdFeatures(rows(queries, len(q_fields)), rows(queries, len(q_bags), ids.max_query_terms))
            doc = IdFeatures(rows(docs, len(d_fields)), rows(docs, len(d_bags), ids.max_doc_terms))
        case _, None:
            query = Tokens(rows(queries, experiment.text.max_query_tokens), rows(queries))
            doc = Tokens(rows(docs, experiment.text.max_doc_tokens), rows(docs))
        case _, packing:
            query = packed(queries, packing.query_rows, packing.query_row_tokens)
            doc = packed(docs, packing.doc_rows, packing.doc_row_tokens)
    return Batch(
        query=query, docs=doc, query_key=rows(queries), doc_key=rows(docs), label=rows(docs), source=rows(docs),
        valid=rows(docs, dtype=jnp.bool_),
    )  # fmt: skip
