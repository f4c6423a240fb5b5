"""The encoders as plain pytrees: Qwen2, BERT, the sparse MLP; the dual encoder made of two of them; theta.

In: model configs, pre-trained checkpoints, batches. Out: unit vectors. `config` holds the shapes and loads no jax;
`dual_encoder` is what is trained, `hf_import` brings weights in and out, `theta` is the miners' discriminator.
"""
