"""Queries a second and latency of the server over loopback, at 1, 8 and 32 clients, and what they are spent on.

    make demo
    python benchmarks/serve.py runs/demo/crops/bundle
    python benchmarks/serve.py runs/demo/crops/bundle --vllm http://127.0.0.1:8000   # and the same through vLLM

Every client keeps its connection and asks the next query when the last one is answered. Clients are a process of their
own on the same machine, so at many clients they take a good part of it. Encoding and search are what the server's own
counters say, as shares of the wall time.

With --vllm the query tower is served by vLLM (docs/handover.md says how): each client asks it for a vector and searches
the bundle's vectors exactly, in its own process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import numpy as np
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--vllm", help="address of a vLLM that serves the bundle's query tower")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args)))
        return
    print(f"python {shlex.join(sys.argv)}")
    manifest = json.loads((args.bundle / "manifest.json").read_text())
    print(f"{manifest['counts']['documents']} documents of {manifest['counts']['width']} numbers, k = {args.k}\n")
    print("| server | clients | queries/s | p50, ms | p99, ms | encoding | search | queries a batch |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for name, flags in {"ScaNN": [], "exact": ["--exact"]}.items():
        with_server(args, name, flags)
    if args.vllm:
        for clients in args.clients:
            row("vLLM + exact", clients, drive(args, args.vllm, clients))


def with_server(args: argparse.Namespace, name: str, flags: list[str]) -> None:
    command = [sys.executable, "-u", "-m", "crops_jax.serve", str(args.bundle), "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = next(m[0] for line in server.stdout if (m := re.search(r"http://[^/]+", line)))
        drive(args, address, 1)  # nobody is timed while files are read for the first time
        for clients in args.clients:
            before = counters(address)
            found = drive(args, address, clients)
            spent = {key: value - before[key] for key, value in counters(address).items()}
            row(name, clients, found, spent)
    finally:
        server.terminate()
        server.wait()


def row(name: str, clients: int, found: dict, spent: dict[str, float] | None = None) -> None:
    cells = ["", "", ""]
    if spent is not None:
        cells = [f"{100 * spent[key] / found['seconds']:.0f} %" for key in ("encode", "search")]
        cells.append(f"{spent['queries'] / spent['batches']:.1f}")
    numbers = [f"{found['rate']:.0f}", f"{found['p50']:.1f}", f"{found['p99']:.1f}", *cells]
    print(f"| {name} | {clients} | {' | '.join(numbers)} |", flush=True)


def counters(address: str) -> dict[str, float]:
    """Seconds and counts since the server started."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    names = {"encode": "crops_encode_seconds_sum", "search": "crops_search_seconds_sum",
             "queries": "crops_batch_queries_sum", "batches": "crops_batch_queries_count"}  # fmt: skip
    return {key: float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE).group(1)) for key, name in names.items()}


def drive(args: argparse.Namespace, address: str, clients: int) -> dict:
    """What so many clients saw, in a process of their own."""
    flags = ["--load", address, "--clients", str(clients), "--seconds", str(args.seconds), "--k", str(args.k)]
    peer = ["--vllm", args.vllm] if args.vllm == address else []
    command = [sys.executable, __file__, str(args.bundle), *flags, *peer]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def load(args: argparse.Namespace) -> dict:
    table = pq.read_table(args.bundle / "eval" / "per_query.parquet", columns=["query"])
    queries = sorted(table["query"].unique().to_pylist())
    ask = asks_vllm(args) if args.vllm else asks_search(args)
    times: list[float] = []
    failures: list[str] = []
    end = perf_counter() + args.seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(args.load).netloc)
        turn = number
        while (start := perf_counter()) < end:
            status = ask(connection, queries[turn % len(queries)])
            times.append(perf_counter() - start)
            turn += 7919  # another query every time, and another one for every client
            if status != 200:
                failures.append(str(status))

    start = perf_counter()
    threads = [threading.Thread(target=client, args=(97 * number,)) for number in range(args.clients[0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = perf_counter() - start
    if failures:
        sys.exit(f"{len(failures)} of {len(times)} requests failed, first with {failures[0]}")
    p50, p99 = np.percentile(times, [50, 99])
    return {"rate": len(times) / seconds, "p50": 1000 * p50, "p99": 1000 * p99, "seconds": seconds}


def asks_search(args: argparse.Namespace):
    def ask(connection: http.client.HTTPConnection, query: str) -> int:
        connection.request("GET", "/search?" + urlencode({"q": query, "k": args.k}))
        answer = connection.getresponse()
        answer.read()
        return answer.status

    return ask


def asks_vllm(args: argparse.Namespace):
    """A vector from vLLM, then an exact search here."""
    vectors = np.load(args.bundle / "vectors.npy")
    with urlopen(f"{args.vllm}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]  # the name is the path that it was started with

    def ask(connection: http.client.HTTPConnection, query: str) -> int:
        body = json.dumps({"model": model, "input": [query], "truncate_prompt_tokens": -1})
        try:
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            answer = connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):  # it closes a connection that waited for seconds
            connection.close()
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            answer = connection.getresponse()
        found = json.loads(answer.read())
        if answer.status == 200:
            scores = vectors @ np.array(found["data"][0]["embedding"], np.float32)
            best = np.argpartition(-scores, args.k)[: args.k]
            best[np.argsort(-scores[best])]
        return answer.status

    return ask


if __name__ == "__main__":
    main()
