"""Corpus encoding here and in sentence-transformers: same weights and texts, from text to vectors on the host.

    make demo && make interop   # the texts, and torch beside jax
    python benchmarks/encode.py

Both sort the texts by length. We cut each batch to the smallest compiled shape that holds it (`encode.buckets`), the
peer pads to the batch's longest text. Before the turns both sides' vectors are compared: they are the same model.
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
from train_step import arguments, device_name, experiment_of, write_towers
from turns import Result, serve, take_turns


def main() -> None:
    args = arguments(__doc__, ("ours", "peer"))
    if args.side:
        serve(partial({"ours": setup_ours, "peer": setup_peer}[args.side], args))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_towers(args, Path(folder))
        results = take_turns(Path(__file__), ["ours", "peer"], [*sys.argv[1:], "--towers", folder], args.turns)
        difference = np.abs(np.load(f"{folder}/ours.npy") - np.load(f"{folder}/peer.npy")).max()
    print(f"python {shlex.join(sys.argv)}")
    print(f"{device_name()}, {args.dtype}, {args.shape} shape, medians of {args.turns} turns")
    print(f"largest difference of the two sides' vectors: {difference:.1e}")
    for side, r in results.items():
        print(
            f"{side:5} {r['seconds']:7.2f} s  {r['texts_per_s']:8.0f} texts/s  {r['tokens_per_s']:9.0f} real tokens/s"
        )
    print(f"ours / peer: {results['ours']['tokens_per_s'] / results['peer']['tokens_per_s']:.2f} in real tokens/s")


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
    tokens = int(tokenizer.encode_documents(texts).length.sum())
    return lambda: timed(encode, len(texts), tokens)


def setup_peer(args) -> Callable[[], Result]:
    """A turn of the library's `encode`."""
    import torch
    from sentence_transformers import SentenceTransformer

    from crops_jax.runs.featurizer import featurizer_of

    experiment = experiment_of(args)
    texts = texts_of(experiment)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SentenceTransformer(str(args.towers / "export/document_tower"), device=device)
    if args.dtype == "bfloat16":
        model = model.bfloat16()

    def encode() -> np.ndarray:
        return model.encode(texts, batch_size=experiment.encode.batch, show_progress_bar=False)

    np.save(args.towers / "peer.npy", encode())
    tokens = int(featurizer_of(experiment).encode_documents(texts).length.sum())
    return lambda: timed(encode, len(texts), tokens)


def timed(encode: Callable[[], np.ndarray], texts: int, tokens: int) -> Result:
    start = perf_counter()
    encode()
    seconds = perf_counter() - start
    return {"seconds": seconds, "texts_per_s": texts / seconds, "tokens_per_s": tokens / seconds}


if __name__ == "__main__":
    main()
