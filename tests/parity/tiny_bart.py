"""A tiny BART of transformers with weights far from their start."""

import torch
import transformers

SHAPE = {
    "vocab_size": 97, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 32, "max_position_embeddings": 20,
}  # fmt: skip


def shaken(kind, seed, **changes):
    """A model of that class, every weight moved, dropout off, special ids as of bart-base."""
    torch.manual_seed(seed)
    model = kind(transformers.BartConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
