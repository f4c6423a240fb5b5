"""A corpus in parts: bytes of an item in each form, what a search part by part holds, and the same for a billion items.

    python benchmarks/corpus.py                     # needs the extra serve, for ScaNN

It writes random unit vectors in parts, builds a ScaNN index a part, and searches both part by part, each in a process
of its own. Bytes on disk are those of the files. Memory is the most that a process held, less what jax alone holds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import bytes_of

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import run_command
from crops_jax.report.tables import Table
from crops_jax.retrieval import vectors
from crops_jax.retrieval.blocks import load_index, searcher_of, write_index_of
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.vectors import IDS, VECTORS, Embeddings, open_embeddings

BILLION = 10**9


def main() -> None:
    args = arguments()
    part = args.documents // args.parts
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        embeddings = write_parts(folder / "embeddings", args)
        vectors.BLOCK_BYTES = part * args.width * 4  # a part is a block
        start = time.monotonic()
        config = IndexConfig(brute_force_below=0, training_sample=args.sample)
        write_index_of(folder / "index", embeddings, config, {"embeddings": folder / "embeddings"})
        built = time.monotonic() - start
        disk = [
            on_disk(folder / "embeddings", VECTORS),
            on_disk(folder / "embeddings", IDS),
            on_disk(folder / "index", "*"),
        ]
        held = {kind: in_a_process(kind, folder, args) for kind in ("exact", "scann")}
    show(args, [size / args.documents for size in disk], built, {kind: size / part for kind, size in held.items()})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, help="items of the corpus (100,000)")
    parser.add_argument("--width", type=int, default=896, help="numbers of a vector (896, Qwen2.5-0.5B's)")
    parser.add_argument("--parts", type=int, default=4, help="parts of the corpus (4)")
    parser.add_argument("--sample", type=int, default=20_000, help="documents of a part that ScaNN trains on (20,000)")
    parser.add_argument("--queries", type=int, default=256, help="queries of a search (256)")
    parser.add_argument("--k", type=int, default=100, help="results of a query (100)")
    parser.add_argument("--scratch", default="build", help="where the files lie for a while (build)")
    args = parser.parse_args()
    Path(args.scratch).mkdir(parents=True, exist_ok=True)
    return args


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_parts(folder: Path, args: argparse.Namespace) -> Embeddings:
    rng, size = np.random.default_rng(0), args.documents // args.parts
    with write_folder(folder, kind="embeddings") as out:
        for number in range(args.parts):
            with write_folder(out.path / f"part-{number:05d}", kind="embeddings_part") as part:
                np.save(part / IDS, np.arange(number * size, (number + 1) * size))
                np.save(part / VECTORS, unit(rng, size, args.width))
    return open_embeddings(folder)


def on_disk(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(name) if path.is_file())


def in_a_process(kind: str, folder: Path, args: argparse.Namespace) -> int:
    """Bytes that a search part by part holds at its most."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(search, (kind, folder, args))


def search(kind: str, folder: Path, args: argparse.Namespace) -> int:
    vectors.BLOCK_BYTES = args.documents // args.parts * args.width * 4
    queries = unit(np.random.default_rng(1), args.queries, args.width)
    small = write_parts(folder / "small", argparse.Namespace(documents=64, parts=1, width=args.width))
    asked = [str(i) for i in range(args.queries)]
    searcher_of(small, lambda _: queries).search(asked, args.k)  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = bytes_of("VmRSS")
    if kind == "exact":
        searcher = searcher_of(open_embeddings(folder / "embeddings"), lambda _: queries)
        searcher.search(asked, args.k)
    else:
        load_index(folder / "index", resident=False).search(queries, args.k)
    return bytes_of("VmHWM") - before


def show(args: argparse.Namespace, disk: list[float], built: float, held: dict[str, float]) -> None:
    names = ("vectors, float32", "ids", "ScaNN index")
    lines = [[n, f"{size:,.0f}", f"{size * BILLION / 1e12:.2f} TB"] for n, size in zip(names, disk, strict=True)]
    print(f"python {shlex.join(sys.argv)}")
    print(f"{args.documents:,} vectors of {args.width} in {args.parts} parts, {os.cpu_count()} CPU cores; "
          f"ScaNN: {built:.1f} s to build")  # fmt: skip
    print(Table("", ["on disk", "bytes an item", "of 1e9 items"], lines).text())
    block = 2**31 // (4 * args.width)  # rows of a block as they are when nothing is measured
    lines = [[kind, f"{size:,.0f}", f"{size * block / 1e9:.1f} GB"] for kind, size in held.items()]
    print(Table("", ["search part by part holds", "bytes an item of a part", f"with parts of {block:,}"], lines).text())


if __name__ == "__main__":
    run_command(main)
