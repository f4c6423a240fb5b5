"""A generator as a retriever: it finds every item, by the probability of its id, and learns whom to write for whom."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generators import CONFIG, MODEL, generator_experiment, write_ids
from tiny import WORDS, losses

from crops_jax import train
from crops_jax.errors import InputError
from crops_jax.generative.searcher import GenerativeSearcher
from crops_jax.labels import LOG_ONLY
from crops_jax.models import bart
from crops_jax.parallel.sharding import RULES
from crops_jax.retrieval.ranking import NO_ITEM
from crops_jax.runs.generator import GeneratorTask
from crops_jax.runs.tasks import task_of
from crops_jax.runs.trained_generator import generative_searcher
from crops_jax.training.generator import GradedLikelihood

PLAIN = {"dtype": jnp.dtype("float32"), "remat": "none", "rules": RULES}


@pytest.fixture(scope="module")
def e(tmp_path_factory):
    return generator_experiment(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="module")
def text(e):
    return GeneratorTask(e, CONFIG).text


@pytest.fixture(scope="module")
def model():
    return bart.init(MODEL, jax.random.key(0), RULES)


def slowly(model, text, query):
    """log pi of every item's id, the query alone and unpadded, token by token from the decoder's whole output."""
    n = int(text.sources([query]).length[0])
    read, found = text.sources([query]).ids[:, :n], []
    ones, place = np.ones((1, n), np.int32), np.arange(n, dtype=np.int32)[None]
    memory = bart.encode(model, read, ones, place, **PLAIN)

    @jax.jit
    def chances(fed):
        many, t = fed.shape
        segments, places = jnp.ones((many, t), jnp.int32), jnp.broadcast_to(jnp.arange(t), (many, t))
        seen = jnp.broadcast_to(memory, (many, *memory.shape[1:])), jnp.ones((many, n), jnp.int32)
        return jax.nn.log_softmax(bart.logits(model, bart.decode(model, fed, segments, places, *seen, **PLAIN), RULES))

    fed = np.concatenate([np.full((len(text.tokens), 1), text.end), text.tokens[:, :-1]], axis=1)
    table = np.asarray(chances(fed), np.float64)
    for row, ids in enumerate(text.tokens[: len(text.ids.items)].tolist()):
        found.append(sum(table[row, place, token] for place, token in enumerate(ids)))
    return np.array(found)


@pytest.mark.slow
def test_a_beam_as_wide_as_the_corpus_finds_every_item_once_in_the_order_of_its_probability(model, text):
    searcher = GenerativeSearcher(model, text)
    queries = ["pump", "", "lamp number 3 of many words that do not fit", "pump", "灯"]
    found, scores = searcher.search(queries, 40)
    for row, query in enumerate(queries):
        wanted = slowly(model, text, query)
        assert sorted(found[row].tolist()) == list(range(40))
        np.testing.assert_allclose(scores[row], wanted[found[row]], atol=1e-4)
        assert (np.diff(scores[row]) <= 0).all()
    given = [np.array([3, 39, 77]), np.array([], np.int64), np.array([-4]), np.array([0, 30, 31]), np.arange(40)]
    said = searcher.score(queries, given)
    for row, query in enumerate(queries):
        inside = (given[row] >= 0) & (given[row] < 40)
        assert np.isneginf(said[row][~inside]).all() and len(said[row]) == len(given[row])
        np.testing.assert_allclose(said[row][inside], slowly(model, text, query)[given[row][inside]], atol=1e-4)
    top, _ = searcher.search(queries[:1], 3)
    assert top[0].tolist() == found[0, :3].tolist()
    assert searcher.search([], 3)[0].shape == (0, 3) and searcher.score([], []) == []
    with pytest.raises(InputError, match="a beam of 40 finds no more items, and 41 are asked for"):
        searcher.search(["pump"], 41)


@pytest.mark.slow
def test_a_corpus_smaller_than_the_beam_fills_up_with_nothing(model, text):
    wide = type(text)(text.tokenizer, text.ids, replace(CONFIG, beams=64))
    found, scores = GenerativeSearcher(model, wide).search(["pump"], 50)
    assert sorted(found[0, :40].tolist()) == list(range(40))
    assert (found[0, 40:] == NO_ITEM).all() and np.isneginf(scores[0, 40:]).all()


@pytest.mark.slow
def test_the_loss_is_the_cross_entropy_of_the_graded_positives(e, model, text):
    """- sum of share * log pi, averaged over the rows that have a positive; nothing comes from an empty row."""
    task = GeneratorTask(e, CONFIG)
    batches = task._batches(range(e.input.shards))
    batch = batches.load(batches.start()).batch
    share = np.array(batch.share)
    share[0] = 0
    batch = replace(batch, share=share)
    said = np.zeros(share.shape)
    for row in np.flatnonzero(share.any(1))[:4].tolist():
        read = text.tokenizer.decode([batch.source.ids[row, : batch.source.length[row]].tolist()])[0]
        every = slowly(model, text, read)
        for a in np.flatnonzero(share[row]).tolist():
            said[row, a] = every[text.rows(batch.answers.ids[row, a][None])[0]]
    few = np.zeros_like(share)
    few[: np.flatnonzero(share.any(1))[3] + 1] = share[: np.flatnonzero(share.any(1))[3] + 1]
    loss, _ = GradedLikelihood(CONFIG).loss(model, replace(batch, share=few), None)
    assert float(loss) == pytest.approx(-(few * said).sum() / 4, rel=1e-4)


@pytest.mark.slow
def test_what_it_learned_it_finds_and_a_killed_run_goes_on(e):
    """The query `word j` has the positives j and j + 8, of the labels 5 and 4; here the higher counts thrice."""
    graded = replace(e, suggest=replace(CONFIG, label_weights=(0, 0, 0, 1, 3), item_texts=0))
    train.run(replace(graded, train=replace(e.train, steps=20)))
    train.run(graded)  # goes on
    searcher = generative_searcher(graded)
    found, scores = searcher.search(list(WORDS), 2)
    assert found.tolist() == [[j, j + 8] for j in range(8)]
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=0.15)
    np.testing.assert_allclose(np.exp(scores[:, 0]), 0.75, atol=0.15)
    assert losses(graded)[200] < losses(graded)[10]
    with pytest.raises(InputError, match=r"suggest\.max_source_tokens: 8 -> 7"):
        generative_searcher(replace(graded, suggest=replace(graded.suggest, max_source_tokens=7)))
    narrow = replace(graded, suggest=replace(graded.suggest, beams=3))
    assert generative_searcher(narrow).search(["pump"], 2)[0].tolist() == found[:1].tolist()
    write_ids(replace(graded, suggest=replace(graded.suggest, ids=replace(CONFIG.ids, seed=5))))
    with pytest.raises(InputError, match="item_ids: not what it was trained with"):
        generative_searcher(graded)


def test_log_only_positives_are_one_field(e):
    task = task_of(replace(e, input=replace(e.input, sources=LOG_ONLY)))
    with pytest.raises(InputError, match="not made of mined candidates"):  # tiny's groups are invented
        task.identity()
    with pytest.raises(InputError) as caught:
        task_of(replace(e, validation=replace(e.validation, every=2), text=replace(e.text, append_eos=False)))
    assert len(caught.value.problems) == 2 and "generator" in caught.value.place
