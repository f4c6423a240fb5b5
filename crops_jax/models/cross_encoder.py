"""A cross-encoder in JAX: a BERT that reads query and document together and gives one logit a pair.

The folder is that of `BertForSequenceClassification` with one label, in the hub's layout, with or without the files of
sentence-transformers' CrossEncoder beside it. A pair is one row, [CLS] query [SEP] document [SEP].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from crops_jax.errors import InputError
from crops_jax.models import bert, hf_config, sentence_folder
from crops_jax.models.config import BertConfig
from crops_jax.models.hf_import import load_tower
from crops_jax.models.hub_tokenizer import read_tokenizer
from crops_jax.models.layers import FORWARD
from crops_jax.models.row_batches import PAIR_LENGTHS, Batch, Replicated, in_batches
from crops_jax.models.safetensors_files import open_checkpoint, shape_problems, view
from crops_jax.parallel.sharding import RULES

ARCHITECTURE = "BertForSequenceClassification"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Classifier:
    """logit = tanh(x P + p) w + b of the first token's state x."""

    pooler: jax.Array  # [E, E]
    pooler_bias: jax.Array  # [E]
    weight: jax.Array  # [E, 1]
    bias: jax.Array  # [1]


@dataclass(frozen=True)
class CrossEncoder:
    """A loaded folder; `probabilities` is its verb."""

    tower: bert.Bert
    classifier: Classifier
    tokenizer: tokenizers.Tokenizer
    max_tokens: int

    def probabilities(
        self, first: Sequence[str], second: Sequence[str], tokens_per_batch: int = 1024, what: str = "score"
    ) -> np.ndarray:
        """float32[n] in [0, 1], the sigmoid of each pair's logit, by all devices of this process.

        Of a pair that is too long the longer text is cut.
        """
        encoded = self.tokenizer.encode_batch_fast(list(zip(first, second, strict=True)))
        if not encoded:
            return np.zeros(0, np.float32)
        rows, types = [e.ids for e in encoded], [e.type_ids for e in encoded]
        return in_batches(_run, self._model, rows, types, tokens_per_batch, self.max_tokens, what, PAIR_LENGTHS)

    @cached_property
    def _model(self) -> Replicated:
        return Replicated((self.tower, self.classifier))


def _run(model: tuple[bert.Bert, Classifier], batch: Batch) -> jax.Array:
    return _probabilities(*model, batch.ids, batch.types, batch.length)


@jax.jit
def _probabilities(
    tower: bert.Bert, classifier: Classifier, ids: jax.Array, types: jax.Array, length: jax.Array
) -> jax.Array:
    """float32[n], in float32 throughout."""
    places = jnp.arange(ids.shape[1], dtype=jnp.int32)
    positions = jnp.broadcast_to(places[None], ids.shape)
    segment_ids = (positions < length[:, None]).astype(jnp.int32)
    with jax.default_matmul_precision("highest"):  # accelerators multiply float32 in fewer bits unless told
        hidden, _ = bert.forward(
            tower, ids, segment_ids, positions,
            dtype=jnp.dtype("float32"), loop=FORWARD, rules=RULES, token_types=types,
        )  # fmt: skip
        pooled = jnp.tanh(hidden[:, 0] @ classifier.pooler + classifier.pooler_bias[None])
        return jax.nn.sigmoid(pooled @ classifier.weight + classifier.bias[None])[:, 0]


def load(folder: Path, max_tokens: int | None = None) -> CrossEncoder:
    """Reads the folder of a cross-encoder.

    Args:
      max_tokens: cut pairs to this many tokens, special ones included, where the folder does not cut them sooner.

    Raises:
      InputError: a file is missing or damaged, the network is another one or has several labels, something of the
        folder is not implemented, or the weights do not fit config.json.
    """
    limit, lower_case, problems = sentence_folder.reading(folder, "sequence-classification")
    named = sentence_folder.read_json(folder / "config.json").get("architectures")
    if named != [ARCHITECTURE]:
        problems.append(f"config.json names the architectures {named}; of cross-encoders {ARCHITECTURE} is implemented")
    listed = sentence_folder.read_json(folder / "modules.json", list, optional=True)
    kinds = [str(entry.get("type")).rpartition(".")[2] for entry in listed]
    if kinds not in ([], ["Transformer"]):
        problems.append(f"modules.json lists {kinds}; of cross-encoders a Transformer alone is implemented")
    if problems:
        raise InputError(str(folder), problems)
    backbone = hf_config.from_hf_json(folder / "config.json")
    limit = sentence_folder.limit(folder, max_tokens, limit, backbone.max_positions)
    tower, classifier = load_tower(folder, backbone), _classifier(folder, backbone)
    return CrossEncoder(tower, classifier, read_tokenizer(folder, limit, lower_case, backbone.vocab_size), limit)


def _classifier(folder: Path, backbone: BertConfig) -> Classifier:
    entries = {name.removeprefix("bert."): entry for name, entry in open_checkpoint(folder).items()}
    labels = entries["classifier.weight"].shape[0] if "classifier.weight" in entries else 1
    width = backbone.width
    shapes: dict[str, tuple[int, ...]] = {
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
        "classifier.weight": (labels, width),
        "classifier.bias": (labels,),
    }
    problems = shape_problems(entries, shapes)
    if labels != 1:
        problems.append(f"gives {labels} labels a pair; a cross-encoder with one is needed")
    if problems:
        raise InputError(str(folder), problems)
    pooler, pooler_bias, weight, bias = (jnp.asarray(view(entries[n]).astype(np.float32)) for n in shapes)
    return Classifier(pooler.T, pooler_bias, weight.T, bias)
