"""theta's stage beside sentence-transformers: the same weights and pairs, from texts to scores on the host, float32.

    make demo && make interop   # the pairs, and torch beside jax
    python benchmarks/theta.py

The pairs are those of P1 and P2 that the demo mined. With the bi-encoder (all-MiniLM-L6-v2) each side encodes every
unique text once and takes the cosine of each pair; ours writes the vectors to its cache on disk and reads them again.
The cross-encoder is the same network with a random classifier, which costs what a trained one does. Both sides sort by
length. Before the turns the scores of both are compared: they are the same model.

On a machine that does other work too, `--cores 1` gives both sides one core and one thread; the rates by CPU time,
printed beside those by the clock, are then what can be compared.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from turns import Result, serve, take_turns

SIDES = ("ours", "peer")


def main() -> None:
    args = arguments()
    if args.side:
        if args.cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        serve(partial({"ours": setup_ours, "peer": setup_peer}[args.side], args))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_cross_encoder(Path(folder) / "cross")
        command = [*sys.argv[1:], "--folder", folder]
        results = take_turns(Path(__file__), list(SIDES), command, args.turns)
        apart = {kind: np.abs(np.subtract(*(np.load(f"{folder}/{side}.{kind}.npy") for side in SIDES))).max()
                 for kind in ("bi", "cross")}  # fmt: skip
    queries, texts = pairs_of(args)
    unique = len({*queries}) + len({*texts})
    print(f"python {shlex.join(sys.argv)}")
    print(
        f"{args.cores or os.cpu_count()} CPU cores, float32, medians of {args.turns} turns; {len(queries):,} pairs of "
        f"{unique:,} texts, of which the cross-encoder reads {args.cross:,}"
    )
    print(
        f"largest difference of the two sides' scores: bi-encoder {apart['bi']:.1e}, cross-encoder {apart['cross']:.1e}"
    )
    for per, told in {"s": "by the clock", "cpu_s": "by CPU time"}.items():
        rates = {side: (r[f"texts_per_{per}"], r[f"pairs_per_{per}"]) for side, r in results.items()}
        for side, (texts, pairs) in rates.items():
            print(f"{told}, {side:5} bi-encoder {texts:7.1f} texts/s   cross-encoder {pairs:7.1f} pairs/s")
        texts, pairs = (ours / peer for ours, peer in zip(*rates.values(), strict=True))
        print(f"{told}, ours / peer: {texts:.2f} in texts/s, {pairs:.2f} in pairs/s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="a mined data set (runs/demo)")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs whose texts the bi-encoder encodes (20,000)")
    parser.add_argument("--cross", type=int, default=2_000, help="of these, pairs that the cross-encoder reads (2,000)")
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="theta.tokens_per_batch of our side (1,024)")
    parser.add_argument("--turns", type=int, default=5, help="rounds (5)")
    parser.add_argument("--cores", type=int, default=0, help="cores and threads of a side (0: all)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def pairs_of(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Queries and document texts of the first mined pairs."""
    import pyarrow.compute as pc

    from crops_jax.logs.tables import read_table
    from crops_jax.retrieval.corpus import read_corpus

    corpus = read_corpus(args.workdir / "logs")
    text = dict(zip(corpus.item_ids.tolist(), corpus.texts, strict=True))
    rows = read_table(args.workdir / "mined/candidates.parquet", columns=["query", "item_id", "theta"])
    rows = rows.filter(pc.is_valid(rows["theta"])).group_by(["query", "item_id"], use_threads=False).aggregate([])
    rows = rows.slice(0, args.pairs)
    return rows["query"].to_pylist(), [text[item] for item in rows["item_id"].to_pylist()]


def write_cross_encoder(folder: Path) -> None:
    """MiniLM with a random classifier, as transformers saves it."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    from crops_jax.models import hf_import

    torch.manual_seed(0)
    package = hf_import.package_folder()
    BertForSequenceClassification.from_pretrained(package, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package).save_pretrained(folder)


def setup_ours(args: argparse.Namespace) -> Callable[[], Result]:
    from crops_jax.models import theta
    from crops_jax.models.config import ThetaConfig

    queries, texts = pairs_of(args)
    cache = args.folder / "cache"

    def scorer(source: str) -> Callable[[int], np.ndarray]:
        model = theta.load(ThetaConfig(source=source, tokens_per_batch=args.tokens_per_batch), cache)

        def score(count: int) -> np.ndarray:
            shutil.rmtree(cache)  # everything is computed and written again
            model.cache = type(model.cache)(cache / "turn")
            return model.scores(queries[:count], texts[:count])

        return score

    return turn_of(args, "ours", scorer("auto"), scorer(str(args.folder / "cross")))


def setup_peer(args: argparse.Namespace) -> Callable[[], Result]:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.util import pairwise_cos_sim

    from crops_jax.models import hf_import

    queries, texts = pairs_of(args)
    if args.cores:
        torch.set_num_threads(args.cores)
    bi = SentenceTransformer(str(hf_import.package_folder()), device="cpu")
    cross = CrossEncoder(str(args.folder / "cross"), device="cpu", max_length=128)
    bi.max_seq_length = 128

    def cosines(count: int) -> np.ndarray:
        vectors, places = [], []
        for side in (queries[:count], texts[:count]):
            place = {text: row for row, text in enumerate(dict.fromkeys(side))}
            encoded = bi.encode(list(place), convert_to_tensor=True, show_progress_bar=False)
            vectors.append(encoded)
            places.append(torch.tensor([place[text] for text in side]))
        (a, b), (left, right) = vectors, places
        return np.clip(pairwise_cos_sim(a[left], b[right]).numpy(), 0, 1)

    def read(count: int) -> np.ndarray:
        pairs = list(zip(queries[:count], texts[:count], strict=True))
        return cross.predict(pairs, activation_fn=torch.nn.Sigmoid(), show_progress_bar=False)

    return turn_of(args, "peer", cosines, read)


def turn_of(
    args: argparse.Namespace, side: str, bi: Callable[[int], np.ndarray], cross: Callable[[int], np.ndarray]
) -> Callable[[], Result]:
    """A turn of both kinds, after one that compiles and whose scores are kept."""
    queries, texts = pairs_of(args)
    unique = len({*queries}) + len({*texts})
    np.save(args.folder / f"{side}.bi.npy", bi(args.pairs))
    np.save(args.folder / f"{side}.cross.npy", cross(args.cross))

    def turn() -> Result:
        clocks = {"s": perf_counter, "cpu_s": process_time}
        start = {per: clock() for per, clock in clocks.items()}
        bi(args.pairs)
        middle = {per: clock() for per, clock in clocks.items()}
        cross(args.cross)
        end = {per: clock() for per, clock in clocks.items()}
        return {f"texts_per_{per}": unique / (middle[per] - start[per]) for per in clocks} | {
            f"pairs_per_{per}": args.cross / (end[per] - middle[per]) for per in clocks
        }

    return turn


if __name__ == "__main__":
    main()
