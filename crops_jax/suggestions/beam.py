"""Beam search, jitted: the texts that a model finds most probable, free or among a dictionary's.

Letters: B texts that are read, K beams of each, T tokens of a written text at most, V vocabulary, M continuations of a
beam (V, or the most that a node of the trie has). It takes the steps of transformers' `generate` with num_beams = K,
early_stopping = False and this length penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crops_jax.models import bart
from crops_jax.models.bart import Bart
from crops_jax.parallel.sharding import RULES, Rules
from crops_jax.suggestions.config import BeamConfig
from crops_jax.suggestions.trie import Trie

Step = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(int32[B, K] tokens, int32 their place, cache) -> (float32[B, K, V] logits of what follows, cache)."""

_NEVER = -1e9  # the score of what cannot be; sums of a few stay finite


class Written(NamedTuple):
    """The best texts of each row, the best first."""

    tokens: jax.Array  # int32[B, suggestions, T], after the start token; what follows a text's end is padding
    score: jax.Array  # float32[B, suggestions], normalised by length
    complete: jax.Array  # bool[B, suggestions]: there is such a text; a small dictionary has fewer


class _State(NamedTuple):
    place: jax.Array  # int32: the last token that is written
    tokens: jax.Array  # int32[B, K, T + 1]: what grows
    score: jax.Array  # float32[B, K]
    node: jax.Array  # int32[B, K], of the trie
    cache: Any
    done: Written  # of K texts a row, with the start token
    improving: jax.Array  # bool[B]: what grows may still beat what is done
    growing: jax.Array  # bool: something does not end yet


def search(
    step: Step, cache: Any, reorder: Callable[[Any, jax.Array], Any], texts: int, start: int, end: int,
    config: BeamConfig, trie: Trie | None = None,
) -> Written:  # fmt: skip
    """Writes texts token by token.

    Args:
      cache: what `step` gets first.
      reorder: (cache, int32[B, K]) -> the cache in which beam k has what beam parents[b, k] had.
      texts: B.
      start: the token before the first.
      end: the token that ends a text, and fills what follows.
      trie: the texts that may be written; None: any.
    """
    shape = (texts, config.beams, config.max_tokens + 1)
    empty = jnp.full(shape, end, jnp.int32).at[:, :, 0].set(start)
    only_first = jnp.where(jnp.arange(config.beams) == 0, 0.0, _NEVER)
    state = _State(
        jnp.int32(0), empty, jnp.broadcast_to(only_first[None, :], shape[:2]), jnp.zeros(shape[:2], jnp.int32), cache,
        Written(empty, jnp.full(shape[:2], _NEVER), jnp.zeros(shape[:2], bool)), jnp.ones(texts, bool), jnp.array(True),
    )  # fmt: skip

    def goes_on(s: _State) -> jax.Array:
        return (s.place < config.max_tokens) & s.improving.any() & s.growing

    end_state = jax.lax.while_loop(goes_on, partial(_next, step, reorder, end, config, trie), state)
    best = jax.tree.map(lambda a: a[:, : config.suggestions], end_state.done)
    return best._replace(tokens=best.tokens[:, :, 1:])


def _next(
    step: Step, reorder: Callable[[Any, jax.Array], Any], end: int, config: BeamConfig, trie: Trie | None, s: _State
) -> _State:
    logits, cache = step(jax.lax.dynamic_index_in_dim(s.tokens, s.place, 2, keepdims=False), s.place, s.cache)
    chance, token, node = _continuations(jax.nn.log_softmax(logits, axis=-1), s.node, trie)
    total = (s.score[:, :, None] + chance).reshape(len(chance), -1)
    # Twice as many as beams: so many go on even where each beam's best continuation ends.
    score, which = jax.lax.top_k(total, 2 * config.beams)
    parent, place = which // chance.shape[2], s.place + 1
    token, node = (jnp.take_along_axis(a.reshape(total.shape), which, axis=1) for a in (token, node))
    tokens = jax.lax.dynamic_update_index_in_dim(_of_beams(s.tokens, parent), token, place, 2)
    ends = (token == end) | (place == config.max_tokens)
    possible = score > _NEVER / 2
    counts = ends & possible & (jnp.arange(2 * config.beams) < config.beams)[None, :]
    counts &= (token == end) | config.unfinished
    done = _with(s.done, tokens, score / _length(place, config), counts & s.improving[:, None])
    score, which = jax.lax.top_k(jnp.where(ends, score + _NEVER, score), config.beams)
    tokens, node, parent = (_of_beams(a, which) for a in (tokens, node, parent))
    return _State(
        place, tokens, score, node, reorder(cache, parent), done,
        s.improving & _may_improve(score[:, 0], place, done, config), ~ends.all(),
    )  # fmt: skip


def _continuations(chance: jax.Array, node: jax.Array, trie: Trie | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """([B, K, M] log-probabilities of the continuations of each beam, their tokens, the nodes they lead to)."""
    if trie is None:
        tokens = jnp.broadcast_to(jnp.arange(chance.shape[2], dtype=jnp.int32), chance.shape)
        return chance, tokens, jnp.zeros_like(tokens)
    place = jnp.arange(max(trie.width, 2))[None, None, :]  # two at least: see `_next`
    first, count = (a.at[node].get()[:, :, None] for a in (jnp.asarray(trie.first), jnp.asarray(trie.count)))
    edge = jnp.minimum(first + place, len(trie.token) - 1)
    tokens, nodes = jnp.asarray(trie.token)[edge], jnp.asarray(trie.child)[edge]
    return jnp.where(place < count, jnp.take_along_axis(chance, tokens, axis=2), _NEVER), tokens, nodes


def _of_beams(a: jax.Array, which: jax.Array) -> jax.Array:
    """a[b, which[b, k], ...]."""
    return jax.vmap(lambda rows, chosen: rows[chosen])(a, which)


def _length(place: jax.Array, config: BeamConfig) -> jax.Array:
    return place.astype(jnp.float32) ** config.length_penalty


def _with(done: Written, tokens: jax.Array, score: jax.Array, counts: jax.Array) -> Written:
    """The best of what is done and of the texts that just ended."""
    both = Written(
        jnp.concatenate([done.tokens, tokens], axis=1),
        jnp.concatenate([done.score, jnp.where(counts, score, _NEVER)], axis=1),
        jnp.concatenate([done.complete, counts], axis=1),
    )
    _, best = jax.lax.top_k(both.score, done.score.shape[1])
    return Written(*(_of_beams(a, best) for a in both))


def _may_improve(best: jax.Array, place: jax.Array, done: Written, config: BeamConfig) -> jax.Array:
    """bool[B]: whether the best that grows, taken as it stands, beats the worst that is done, or there is room."""
    beaten = best / _length(place, config) > done.score.min(1)
    return (best > _NEVER / 2) & (beaten | ~done.complete.all(1))


def write(
    model: Bart, ids: jax.Array, present: jax.Array, config: BeamConfig, *, start: int, end: int, dtype: jnp.dtype,
    trie: Trie | None = None, rules: Rules = RULES,
) -> Written:  # fmt: skip
    """What a BART writes for B texts; jit it with `config`, `start` and `end` static.

    Args:
      ids: int32[B, S], the texts that are read, one a row.
      present: bool[B, S], false on padding.
    """
    place = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    segments = present.astype(jnp.int32)
    memory = bart.encode(model, ids, segments, place, dtype=dtype, remat="none", rules=rules)
    cache = bart.start(model, memory, present, config.beams, config.max_tokens, rules)

    def reorder(cache: bart.Cache, parent: jax.Array) -> bart.Cache:
        def one(a: jax.Array) -> jax.Array:
            return jax.vmap(_of_beams, in_axes=(0, None))(a, parent)

        return cache._replace(own_k=one(cache.own_k), own_v=one(cache.own_v))

    def step(tokens: jax.Array, place: jax.Array, cache: bart.Cache) -> tuple[jax.Array, bart.Cache]:
        return bart.step(model, tokens, place, cache, rules)

    return search(step, cache, reorder, len(ids), start, end, config, trie)
