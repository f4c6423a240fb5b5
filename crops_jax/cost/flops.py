"""How many FLOPs the matrix products of a model take. Model FLOPs utilisation (MFU) is measured against this count.

Every multiply-add counts as two FLOPs. Embedding lookups, norms, softmax and the optimiser are left out, because they
are not matrix products. Attention counts every pair of token slots of a row, behind or ahead, of the same text or not,
because the dense masks compute them all. A training step is three forward passes: the backward pass has two products
for each of the forward pass; what remat or gradient caching computes again is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from crops_jax.models.config import (
    Backbone,
    BartConfig,
    BertConfig,
    DualEncoderConfig,
    Qwen2Config,
    SparseMlpConfig,
    Tower,
)


@dataclass(frozen=True)
class Texts:
    """What one tower reads in a step."""

    tokens: int
    """Token slots, or only the real tokens: whichever the figure is to be about. Rows for the sparse model."""
    context: int
    """Slots that each of them attends to: those of its row."""
    texts: int
    """Embeddings that come out."""


def projections(backbone: Qwen2Config | BertConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each weight of a layer that multiplies every token."""
    match backbone:
        case Qwen2Config(width=e, heads=h, kv_heads=g, head_size=d, ffn=f):
            return {"q": (e, h * d), "k": (e, g * d), "v": (e, g * d), "o": (h * d, e),
                    "gate": (e, f), "up": (e, f), "down": (f, e)}  # fmt: skip
        case BertConfig(width=e, ffn=f):
            return {"q": (e, e), "k": (e, e), "v": (e, e), "o": (e, e), "up": (e, f), "down": (f, e)}


def projection_parameters(backbone: Qwen2Config | BertConfig) -> int:
    """Weights that multiply every token, all layers: all but the table, norms and biases.

    >>> projection_parameters(Qwen2Config())
    357826560
    """
    return backbone.layers * sum(i * o for i, o in projections(backbone).values())


def tower_flops(backbone: Backbone, read: Texts, tower: Tower = "document") -> int:
    """FLOPs of one forward pass of a tower."""
    match backbone:
        case SparseMlpConfig():
            fields, bags = backbone.ids.query_tables if tower == "query" else backbone.ids.doc_tables
            widths = ((len(fields) + len(bags)) * backbone.table_width, *backbone.hidden, backbone.width)
            return 2 * read.tokens * sum(a * b for a, b in pairwise(widths))
        case _:
            heads = projections(backbone)["q"][1]
            attention = 4 * backbone.layers * heads * read.context  # q k^T, and the weights times v
            return read.tokens * (2 * projection_parameters(backbone) + attention)


def loss_flops(queries: int, documents: int, width: int) -> int:
    """FLOPs of the B x N logits, forward: every loss here needs them, in whatever form it makes them."""
    return 2 * queries * documents * width


def train_step_flops(model: DualEncoderConfig, queries: Texts, documents: Texts) -> int:
    """FLOPs of one update on one batch, over all devices. Frozen layers and towers have a forward pass alone,
    and layers whose states are kept have none."""
    loss = loss_flops(queries.texts, documents.texts, model.backbone.width)
    towers = _tower_update_flops(model, queries, "query") + _tower_update_flops(model, documents, "document")
    return 3 * loss + towers + (queries.tokens + documents.tokens) * _lora_flops(model)


def _tower_update_flops(model: DualEncoderConfig, read: Texts, tower: Tower) -> int:
    forward = tower_flops(model.backbone, read, tower)
    if isinstance(model.backbone, SparseMlpConfig):
        return forward if tower in model.frozen.towers else 3 * forward
    layers, frozen = model.backbone.layers, model.frozen_layers(tower)
    done = model.frozen.layers if model.frozen.keep_states else 0
    return (forward * (layers - done) + 2 * forward * (layers - frozen)) // layers


def _lora_flops(model: DualEncoderConfig) -> int:
    """What LoRA adds for one token: three passes through the adapters, less the gradient of the frozen weights."""
    if model.lora is None:
        return 0
    adapted = sum(sum(projections(model.backbone)[name]) for name in model.lora.projections)
    adapters = model.backbone.layers * model.lora.rank * adapted
    return 2 * (3 * adapters - projection_parameters(model.backbone))


def writer_step_flops(model: BartConfig, source: Texts, answers: Texts) -> int:
    """FLOPs of one update of an encoder-decoder, over all devices.

    Args:
      source: what the encoder reads; all answers of a text share it.
      answers: what the decoder reads.
    """
    e, slots = model.width, source.context
    encoder = model.encoder_layers * (2 * (4 * e * e + 2 * e * model.encoder_ffn) + 4 * e * slots)
    across = model.decoder_layers * 2 * 2 * e * e  # keys and values of what is read
    own = 2 * (6 * e * e + 2 * e * model.decoder_ffn) + 4 * e * (answers.context + slots)
    decoder = model.decoder_layers * own + 2 * e * model.vocab_size
    return 3 * (source.tokens * (encoder + across) + answers.tokens * decoder)
