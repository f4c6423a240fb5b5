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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from train_step import arguments, device_name, experiment_of, fastest, towers, write_json
from turns import Result, serve, take_turns

PART = 16_384  # texts that are tokenised at a time, as `encode` does with its parts


def main() -> None:
    parser = arguments(__doc__, ("ours", "peer"))
    parser.add_argument("--batch", type=int, help="texts of a device call, both sides (default: the config's)")
    parser.add_argument("--repeat", type=int, default=1, help="times that every text is encoded")
    args = parser.parse_args()
    if args.side:
        serve(partial({"ours": setup_ours, "peer": setup_peer}[args.side], args))
        return
    with towers(args) as folder:
        command = [*sys.argv[1:], "--towers", str(folder)]
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


def given(args, init_from: Path | None = None) -> tuple[Any, list[str]]:
    """The experiment, and the distinct documents of the first groups, each `--repeat` times."""
    experiment = experiment_of(args, init_from)
    if args.batch:
        experiment = replace(experiment, encode=replace(experiment.encode, batch=args.batch))
    return experiment, texts_of(experiment) * args.repeat


def texts_of(experiment) -> list[str]:
    from ours import read_groups

    from crops_jax.text.tokenizer import document_text

    fields = ("ocr_cover", "photo_caption", "keyword", "click_query")
    rows = (row for r in read_groups(experiment, 1024) for row in zip(*[getattr(r, f) for f in fields], strict=True))
    return [document_text(*row) for row in dict.fromkeys(rows)]


def setup_ours(args) -> Callable[[], Result]:
    """A turn of `retrieval.embedding.encode_rows`, a part of the texts tokenised while the one before is encoded."""
    import jax

    from crops_jax.models import hf_import
    from crops_jax.parallel.ahead import ahead
    from crops_jax.parallel.sharding import make_mesh
    from crops_jax.retrieval.embedding import as_rows, encode_rows
    from crops_jax.runs.featurizer import featurizer_of

    experiment, texts = given(args, init_from=args.towers)
    mesh, tokenizer = make_mesh(experiment.mesh), featurizer_of(experiment)
    with jax.set_mesh(mesh):
        model = hf_import.create(experiment.model, jax.random.key(0), mesh)

    def encode() -> np.ndarray:
        parts = (texts[start : start + PART] for start in range(0, len(texts), PART))
        with jax.set_mesh(mesh):
            return np.concatenate(
                [
                    encode_rows(model, "document", as_rows(rows), experiment.encode, mesh)
                    for rows in ahead(map(tokenizer.encode_documents, parts))
                ]
            )

    np.save(args.towers / "ours.npy", encode())  # compiles
    return lambda: timed(encode, experiment.model.backbone, tokenizer.encode_documents(texts).length)


def setup_peer(args) -> Callable[[], Result]:
    """A turn of the library's `encode`."""
    import torch
    from sentence_transformers import SentenceTransformer

    from crops_jax.runs.featurizer import featurizer_of

    experiment, texts = given(args)
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
