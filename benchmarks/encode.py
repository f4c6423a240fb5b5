"""Corpus encoding here and in sentence-transformers: same weights and texts, from text to vectors on the host.

    make demo && make interop   # the texts, and torch beside jax
    python benchmarks/encode.py

The peer sorts the texts by length and pads to a batch's longest. On CPU so do we, to the smallest compiled shape that
holds the batch (`encode.buckets`); elsewhere we pack (`encode.packed`). Before the turns both sides' vectors are
compared: they are the same model.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from train_step import arguments, device_name, experiment_of, fastest, write_json, write_towers
from turns import Result, serve, take_turns


def main() -> None:
    args = arguments(__doc__, ("ours", "peer"))
    if args.side:
        serve(partial({"ours": setup_ours, "peer": setup_peer}[args.side], args))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_towers(args, Path(folder))
        command = [*sys.argv[1:], "--towers", folder]
        results = take_turns(Path(__file__), ["ours", "peer"], command, args.turns, args.apart)
        difference = np.abs(np.load(f"{folder}/ours.npy") - np.load(f"{folder}/peer.npy")).max()
    print(f"python {shlex.join(sys.argv)}")
    print(f"{device_name()}, {args.dtype}, {args.shape} shape, medians of {args.turns} turns")
    print(f"largest difference of the two sides' vectors: {difference:.1e}")
    for side, r in results.items():
        print(
            f"{side:5} {r['seconds']:7.2f} s  {r['texts_per_s']:8.0f} texts/s  {r['tokens_per_s']:9.0f} real tokens/s"
        )
    print(f"ours / peer: {results['ours']['tokens_per_s'] / results['peer']['tokens_per_s']:.2f} in real tokens/s")
    write_json(args, results)


def texts_of(experiment) -> list[str]:
    """Distinct documents of the first groups."""
    from ours import read_groups

    from crops_jax.text.tokenizer import document_text

    fields = ("ocr_cover", "photo_caption", "keyword", "click_query")
    rows = (row for r in read_groups(experiment, 1024) for row in zip(*[getattr(r, f) for f in fields], strict=True))
    return [document_text(*row) for row in dict.fromkeys(rows)]


def setup_ours(args) -> Callable[[], Result]:
    """A turn of `encoding.encode_rows` with the tokeniser before it."""
    import jax

    from crops_jax.models import hf_import
    from crops_jax.parallel.sharding import make_mesh
    from crops_jax.retrieval.embedding import as_rows, encode_rows
    from crops_jax.runs.featurizer import featurizer_of

    experiment = experiment_of(args, init_from=args.towers)
    mesh, tokenizer, texts = make_mesh(experiment.mesh), featurizer_of(experiment), texts_of(experiment)
    with jax.set_mesh(mesh):
        model = hf_import.create(experiment.model, jax.random.key(0), mesh)

    def encode() -> np.ndarray:
        with jax.set_mesh(mesh):
            return encode_rows(model, "document", as_rows(tokenizer.encode_documents(texts)), experiment.encode, mesh)

    np.save(args.towers / "ours.npy", encode())  # compiles
    return lambda: timed(encode, experiment.model.backbone, tokenizer.encode_documents(texts).length)


def setup_peer(args) -> Callable[[], Result]:
    """A turn of the library's `encode`."""
    import torch
    from sentence_transformers import SentenceTransformer

    from crops_jax.runs.featurizer import featurizer_of

    experiment = experiment_of(args)
    texts = texts_of(experiment)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SentenceTransformer(str(args.towers / "export/document_tower"), device=device, model_kwargs=fastest(device))
    if args.dtype == "bfloat16":
        model = model.bfloat16()

    def encode() -> np.ndarray:
        return model.encode(texts, batch_size=experiment.encode.batch, show_progress_bar=False)

    np.save(args.towers / "peer.npy", encode())
    lengths = featurizer_of(experiment).encode_documents(texts).length
    return lambda: timed(encode, experiment.model.backbone, lengths)


def timed(encode: Callable[[], np.ndarray], backbone, lengths: np.ndarray) -> Result:
    from crops_jax.cost.flops import tower_flops
    from crops_jax.training.dual_encoder import real_texts

    start = perf_counter()
    encode()
    seconds = perf_counter() - start
    return {
        "seconds": seconds,
        "texts_per_s": len(lengths) / seconds,
        "tokens_per_s": int(lengths.sum()) / seconds,
        "flops_per_s": tower_flops(backbone, real_texts(lengths)) / seconds,
    }


if __name__ == "__main__":
    main()
