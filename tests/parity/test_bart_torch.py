"""BART against transformers on random checkpoints: every slot, padded and packed, whole and step by step."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_bart import shaken  # noqa: E402

from crops_jax.models import bart  # noqa: E402
from crops_jax.models.bart_import import load_bart  # noqa: E402
from crops_jax.parallel.sharding import RULES  # noqa: E402
from crops_jax.suggestions.beam import write  # noqa: E402
from crops_jax.suggestions.config import BeamConfig  # noqa: E402
from crops_jax.suggestions.trie import trie_of  # noqa: E402

TOLERANCE = 1e-4
PLAIN = {"dtype": jnp.dtype("float32"), "remat": "none", "rules": RULES}


@pytest.fixture(scope="module", params=["BartModel", "BartForConditionalGeneration"])
def both(request, tmp_path_factory):
    """(transformers' model, ours), read from the folder that it wrote."""
    folder = tmp_path_factory.mktemp("bart")
    model = shaken(getattr(transformers, request.param), seed=3)
    model.save_pretrained(folder)
    return getattr(model, "model", model), load_bart(folder)


def rows(lengths, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 90, (len(lengths), max(lengths)))
    present = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return np.where(present, ids, 1), present


def test_every_slot_of_padded_rows(both):
    theirs, ours = both
    (ids, present), (out, out_present) = rows((9, 4, 1), 0), rows((5, 7, 2), 1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(present).long(),
            decoder_input_ids=torch.tensor(out), decoder_attention_mask=torch.tensor(out_present).long(),
        )  # fmt: skip
    place, out_place = (np.broadcast_to(np.arange(a.shape[1]), a.shape) for a in (ids, out))
    memory = bart.encode(ours, ids, present.astype(np.int32), place, **PLAIN)
    hidden = bart.decode(ours, out, out_present.astype(np.int32), out_place, memory, present.astype(np.int32), **PLAIN)
    assert np.abs(memory - expected.encoder_last_hidden_state.numpy())[present].max() <= TOLERANCE
    assert np.abs(hidden - expected.last_hidden_state.numpy())[out_present].max() <= TOLERANCE
    logits = bart.logits(ours, hidden, RULES)
    assert (
        np.abs(logits - expected.last_hidden_state.numpy() @ theirs.shared.weight.detach().numpy().T)[out_present].max()
        < 1e-3
    )


def test_texts_that_share_a_row_do_not_see_each_other(both):
    _, ours = both
    (ids, _), (out, _) = rows((6, 3), 2), rows((4, 4), 3)
    alone = []
    for i, length in enumerate((6, 3)):
        one, ones = ids[i : i + 1, :length], np.ones((1, length), np.int32)
        memory = bart.encode(ours, one, ones, np.arange(length)[None], **PLAIN)
        four = np.ones((1, 4), np.int32)
        alone.append(bart.decode(ours, out[i : i + 1], four, np.arange(4)[None], memory, ones, **PLAIN)[0])
    segments, place = np.array([[1] * 6 + [2] * 3 + [0]]), np.array([[*range(6), *range(3), 0]])
    memory = bart.encode(ours, np.concatenate([ids[0], ids[1, :3], [1]])[None], segments, place, **PLAIN)
    both_out, both_place = out.reshape(1, 8), np.array([[*range(4), *range(4)]])
    packed = bart.decode(ours, both_out, np.repeat([[1, 2]], 4, axis=1), both_place, memory, segments, **PLAIN)[0]
    np.testing.assert_allclose(packed, np.concatenate(alone), atol=1e-5)


def test_step_by_step_equals_the_whole(both):
    """Two beams a text: each its own tokens, one text for both."""
    _, ours = both
    (ids, present), (out, _) = rows((9, 4), 4), rows((6,) * 4, 5)
    memory = bart.encode(ours, ids, present.astype(np.int32), np.broadcast_to(np.arange(9), (2, 9)), **PLAIN)
    ones, place = np.ones((4, 6), np.int32), np.broadcast_to(np.arange(6), (4, 6))
    twice = [np.repeat(a, 2, axis=0) for a in (memory, present.astype(np.int32))]
    whole = bart.logits(ours, bart.decode(ours, out, ones, place, *twice, **PLAIN), RULES)
    cache = bart.start(ours, memory, jnp.asarray(present), 2, 6, RULES)
    step = jax.jit(lambda ids, t, cache: bart.step(ours, ids, t, cache, RULES))
    for t in range(6):
        found, cache = step(jnp.asarray(out[:, t].reshape(2, 2)), jnp.int32(t), cache)
        np.testing.assert_allclose(found.reshape(4, -1), whole[:, t], atol=1e-4)


def test_a_checkpoint_that_is_no_bart_is_told(tmp_path: Path):
    model = shaken(transformers.BartModel, seed=0, scale_embedding=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(Exception, match="scale_embedding = True is not implemented, only False"):
        load_bart(tmp_path)


KNOWN = [[a, b, 2] if b != 2 else [a, 2] for a in range(4, 9) for b in (2, 3, 5, 10)] + [[11, 10, 9, 8, 2]]


def allowed(written):
    """What may follow a beginning in the dictionary, by transformers' own hook."""
    text = written[1:].tolist()
    return sorted({known[len(text)] for known in KNOWN if known[: len(text)] == text and len(known) > len(text)}) or [2]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 0.3])
def test_the_beam_writes_what_generate_writes(tmp_path, known, penalty):
    """Twelve tokens, so that texts end early, late and never."""
    model = shaken(transformers.BartForConditionalGeneration, seed=5, vocab_size=12, forced_eos_token_id=None)
    end = model.model.shared.weight.data[2]
    model.model.decoder.layers[-1].final_layer_norm.bias.data.add_(2.0 * end / (end @ end))  # 2 to its logit
    model.save_pretrained(tmp_path)
    ids, present = rows((6, 3, 5), 6)
    ids = np.where(present, ids % 8 + 4, 1)
    settings = transformers.GenerationConfig(
        num_beams=4, num_return_sequences=4, max_length=7, length_penalty=penalty, early_stopping=False,
        decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    hook = (lambda batch, written: allowed(written)) if known else None
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(present).long(), generation_config=settings,
            prefix_allowed_tokens_fn=hook,
        )  # fmt: skip
    config = BeamConfig(beams=4, suggestions=4, max_tokens=6, length_penalty=penalty, unfinished=not known)
    ours = jax.jit(lambda model, ids, present: write(
        model, ids, present, config, start=2, end=2, dtype=jnp.dtype("float32"), trie=trie_of(KNOWN) if known else None
    ))(load_bart(tmp_path), jnp.asarray(ids), jnp.asarray(present))  # fmt: skip
    assert ours.complete.all()
    np.testing.assert_allclose(ours.score.ravel(), theirs.sequences_scores.numpy(), atol=1e-4)
    texts = [until_its_end(row) for row in theirs.sequences[:, 1:].tolist()]
    assert [until_its_end(row) for row in ours.tokens.reshape(12, -1).tolist()] == texts
    assert len({len(text) for text in texts}) > 1 and (not known or all(text in KNOWN for text in texts))


def until_its_end(row):
    return row[: row.index(2) + 1] if 2 in row else row
