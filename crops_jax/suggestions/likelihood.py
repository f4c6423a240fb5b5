"""What a model says of answers: their log-probability, teacher-forced.

Letters: B rows, A answers of a row, S slots that are read, T that are written, V vocabulary, E width.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from crops_jax.batch import Tokens
from crops_jax.models import bart
from crops_jax.models.bart import Bart
from crops_jax.models.config import Dtype, Remat
from crops_jax.parallel.sharding import RULES
from crops_jax.suggestions.batches import AnswersBatch
from crops_jax.suggestions.rwr import sequence_log_probability


class Computed(Protocol):
    """How a model is computed, of any arm's config."""

    @property
    def dtype(self) -> Dtype:
        """Compute type."""
        ...

    @property
    def remat(self) -> Remat:
        """What the backward pass recomputes."""
        ...


def answers_log_probability(model: Bart, batch: AnswersBatch, config: Computed) -> jax.Array:
    """float32[B, A]: log pi(answer | source), summed over the answer's tokens; 0 of an answer without tokens.

    The answers of a row lie one behind the other in one row of the decoder: each looks at itself so far, and all at
    what was read, whose keys are made once.
    """
    dtype, source, answers = jnp.dtype(config.dtype), batch.source, batch.answers
    read = _present(source).astype(jnp.int32)
    memory = bart.encode(model, source.ids, read, _places(source), dtype=dtype, remat=config.remat, rules=RULES)
    rows, count, slots = answers.ids.shape

    def in_row(a: jax.Array) -> jax.Array:
        return a.reshape(rows, count * slots)

    there = _present(answers)
    number = jnp.arange(1, count + 1, dtype=jnp.int32)[None, :, None]
    hidden = bart.decode(
        model, in_row(batch.before), in_row(jnp.where(there, number, 0)), in_row(_places(answers)), memory, read,
        dtype=dtype, remat=config.remat, rules=RULES, reads=in_row(there.astype(jnp.int32)),
    )  # fmt: skip

    # The logits of all answers at once would be the largest array of the step; they are made again going back.
    @jax.checkpoint
    def of_one(hidden: jax.Array, ids: jax.Array, there: jax.Array) -> jax.Array:
        return sequence_log_probability(bart.logits(model, hidden, RULES), ids, there)

    said = [of_one(hidden[:, a * slots : (a + 1) * slots], answers.ids[:, a], there[:, a]) for a in range(count)]
    return jnp.stack(said, axis=1)


def _places(texts: Tokens) -> jax.Array:
    """int32[..., T]: the place of every slot in its text."""
    places = jnp.arange(texts.ids.shape[-1], dtype=jnp.int32)
    return jnp.zeros_like(texts.ids) + places.reshape((1,) * (texts.ids.ndim - 1) + places.shape)


def _present(texts: Tokens) -> jax.Array:
    """bool[..., T]: true on the tokens of a text."""
    return _places(texts) < texts.length[..., None]
