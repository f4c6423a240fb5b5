"""Beam search over a small chain of tokens whose every text can be listed, and the trie that limits it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.models import bart
from crops_jax.models.config import BartConfig
from crops_jax.parallel.sharding import RULES
from crops_jax.suggestions.beam import search, write
from crops_jax.suggestions.config import BeamConfig
from crops_jax.suggestions.trie import trie_of, trie_of_rows

END, START, V, T = 1, 2, 5, 4


def chain(seed=0, texts=2):
    """Logits of the next token by the text and by all that was written: [B, V^T histories, V]."""
    return np.random.default_rng(seed).normal(size=(texts, V**T, V)).astype(np.float32) * 2


def found(table, config, trie=None):
    """What the search finds; its cache is the number of each beam's history, so a wrong order of beams shows."""

    @jax.jit
    def run(table, trie):
        def step(tokens, place, history):
            history = jnp.where(place == 0, 0, history * V + tokens)
            return jax.vmap(lambda t, h: t[h])(table, history), history

        start = jnp.zeros((len(table), config.beams), jnp.int32)
        return search(step, start, lambda h, p: jnp.take_along_axis(h, p, axis=1), len(table), START, END, config, trie)

    return jax.tree.map(np.asarray, run(jnp.asarray(table), trie))


def listed(table, penalty, known=None, unfinished=False):
    """(score, text) of every text of up to T tokens, the best first."""
    rows = []
    for n in range(1, T + 1):
        for text in itertools.product(range(V), repeat=n):
            if END in text[:-1] or not (text[-1] == END or (unfinished and n == T)):
                continue
            if known is not None and text not in known:
                continue
            total, history = 0.0, 0
            for token in text:
                logits = table[history]
                total += logits[token] - np.log(np.exp(logits).sum())
                history = history * V + token
            rows.append((total / n**penalty, text))
    return sorted(rows, reverse=True)


def texts_of(written, row):
    return [(score, tuple(t[: t.index(END) + 1] if END in t else t))
            for score, t, there in zip(written.score[row].tolist(), written.tokens[row].tolist(), written.complete[row],
                                       strict=True) if there]  # fmt: skip


@pytest.mark.parametrize(("penalty", "unfinished"), [(1.0, False), (0.0, True), (2.0, True)])
def test_as_many_beams_as_texts_find_the_best_of_all(penalty, unfinished):
    table = chain()
    config = BeamConfig(beams=300, suggestions=8, max_tokens=T, length_penalty=penalty, unfinished=unfinished)
    written = found(table, config)
    for row in range(2):
        wanted = listed(table[row], penalty, unfinished=unfinished)[:8]
        got = texts_of(written, row)
        assert [text for _, text in got] == [text for _, text in wanted]
        np.testing.assert_allclose([s for s, _ in got], [s for s, _ in wanted], atol=1e-4)


def test_a_trie_lets_only_known_texts_through_and_a_small_one_gives_fewer():
    known = {(0, END), (0, 3, END), (0, 3, 4, END), (4, 4, END), (3, 0, 0, END)}
    written = found(chain(), BeamConfig(beams=8, suggestions=8, max_tokens=T), trie_of(sorted(known)))
    for row in range(2):
        wanted = listed(chain()[row], 1.0, known)
        got = texts_of(written, row)
        assert [text for _, text in got] == [text for _, text in wanted] and len(got) == 5
        np.testing.assert_allclose([s for s, _ in got], [s for s, _ in wanted], atol=1e-4)
    too_long = found(chain(), BeamConfig(beams=4, suggestions=4, max_tokens=2), trie_of(sorted(known)))
    assert [text for _, text in texts_of(too_long, 0)] == [(0, END)], "others do not end in two tokens"
    one = found(chain(), BeamConfig(beams=3, suggestions=2, max_tokens=T), trie_of([(4, END)]))
    assert [text for _, text in texts_of(one, 1)] == [(4, END)]


def test_tries_by_hand():
    trie = trie_of([(5, 1), (3, 4, 1), (3, 1)])
    assert trie.width == 2 and trie.count.tolist() == [2, 1, 0, 2, 1, 0, 0]
    assert trie.token[: trie.count[0]].tolist() == [3, 5]
    for texts in ([], [()], [(3, 1), (3, 1, 4)]):
        with pytest.raises(InputError, match="trie"):
            trie_of(texts)
    with pytest.raises(InputError, match="17 of 16 beams"):
        BeamConfig(beams=16, suggestions=17)


def test_a_trie_of_rows_lets_through_what_the_trie_of_the_same_texts_does():
    rows = np.unique(np.random.default_rng(0).integers(0, 4, (60, 4)), axis=0)

    def paths(trie, node=0):
        edges = range(trie.first[node], trie.first[node] + trie.count[node])
        return [(trie.token[e], *rest) for e in edges for rest in paths(trie, trie.child[e])] or [()]

    made = trie_of_rows(rows)
    assert paths(made) == paths(trie_of(rows.tolist())) == [tuple(row) for row in rows.tolist()]
    assert made.width == trie_of(rows.tolist()).width and (made.count[-len(rows) :] == 0).all()
    one = trie_of_rows(np.array([[7, 8]]))
    assert (one.count.tolist(), one.token.tolist(), one.child.tolist()) == ([1, 1, 0], [7, 8], [1, 2])


@pytest.mark.slow
def test_a_bart_writes_for_each_row_what_it_writes_for_it_alone():
    config = BartConfig(vocab_size=11, width=8, encoder_layers=1, decoder_layers=2, encoder_heads=2, decoder_heads=2,
                        encoder_ffn=8, decoder_ffn=8, max_positions=8, init_std=0.6)  # fmt: skip
    model, beam = (
        bart.init(config, jax.random.key(0), RULES),
        BeamConfig(beams=3, suggestions=3, max_tokens=5, unfinished=True),
    )
    run = jax.jit(lambda ids, present: write(model, ids, present, beam, start=2, end=1, dtype=jnp.dtype("float32")))
    ids = jnp.array([[5, 6, 7, 8], [9, 4, 0, 0]])
    present = jnp.array([[True] * 4, [True] * 2 + [False] * 2])
    both = run(ids, present)
    again = run(ids.at[1, 2:].set(3)[::-1], present[::-1])
    for one, other in zip(both, again, strict=True):
        np.testing.assert_allclose(one, other[::-1], atol=1e-5)
    # Its scores are those of the whole decoder over what it wrote.
    plain = {"dtype": jnp.dtype("float32"), "remat": "none", "rules": RULES}

    @jax.jit
    def chance(tokens):
        """Of each token of int32[6, 5], three texts a row."""
        read = [jnp.repeat(a, 3, axis=0) for a in (ids, present.astype(jnp.int32))]
        memory = bart.encode(model, *read, jnp.broadcast_to(jnp.arange(4), (6, 4)), **plain)
        entered = jnp.concatenate([jnp.full((6, 1), 2), tokens[:, :-1]], axis=1)
        ones, place = jnp.ones((6, 5), jnp.int32), jnp.broadcast_to(jnp.arange(5), (6, 5))
        hidden = bart.decode(model, entered, ones, place, memory, read[1], **plain)
        each = jax.nn.log_softmax(bart.logits(model, hidden, RULES))
        return jnp.take_along_axis(each, tokens[:, :, None], axis=2)[:, :, 0]

    tokens = np.asarray(both.tokens).reshape(6, 5)
    counts = np.cumsum(tokens == 1, axis=1) - (tokens == 1) == 0
    mean = (np.asarray(chance(tokens)) * counts).sum(1) / counts.sum(1)
    np.testing.assert_allclose(mean, np.asarray(both.score).ravel(), atol=1e-4)
