"""A SIMULATED language model: a local server that speaks the OpenAI chat protocol and knows a world's hidden items.

It stands in for a real endpoint in the demo and the tests. It understands nothing: it finds the query in the prompt
and returns the metadata of an item of the simulated world that answers the query and is not in the platform's
corpus. A small share of its answers is off the topic or malformed, as a real model's would be. Asked to judge a
document (`judge`), it says what the simulated world says.

    python -m crops_jax.mining.simulated_llm --hidden runs/demo/logs/hidden_items.parquet --port 8765
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from crops_jax.errors import InputError, run_command
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.mining.config import EndpointConfig, SimulatedLLMConfig
from crops_jax.normal_text import strip_blanks
from crops_jax.stable_hash import hash_texts, mix

MODEL = "simulated-llm"
_TITLE_WORDS = 8  # of its text, for an item without a title
_NOTHING_HIDDEN = (
    "holds no hidden items, so there is nothing to answer with; leave P3 out (--mining.world_knowledge.enabled=False)"
)
_QUERY_LINE = re.compile(r'^Query: (".*")$', re.MULTILINE)
_DOCUMENT_LINE = re.compile(r"^Document: (\{.*\})$", re.MULTILINE)  # only a judge is shown one


class SimulatedLLM:
    """Answers prompts from hidden items; the same prompt always gets the same answer."""

    def __init__(self, hidden: str | Path, config: SimulatedLLMConfig):
        """Reads the hidden items: their text fields, and in `queries` the list of queries that each answers.

        Raises:
          InputError: the file is missing, empty, or lacks a column.
        """
        self._config = config
        table = _read(Path(hidden))
        fields = zip(*(table[name].to_pylist() for name in TEXT_FIELDS), strict=True)
        self._documents = [dict(zip(TEXT_FIELDS, (text or "" for text in row), strict=True)) for row in fields]
        self._by_query: dict[str, list[int]] = {}
        for row, queries in enumerate(table["queries"].to_pylist()):
            for query in queries:
                self._by_query.setdefault(query, []).append(row)
        self._queries_of: dict[tuple[str, str], set[str]] = {}
        for query, rows in self._by_query.items():
            for row in rows:
                shown = _title_and_caption(_as_answer(self._documents[row]))
                self._queries_of.setdefault(shown, set()).add(query)

    def answer(self, messages: Sequence[dict[str, str]]) -> tuple[str | None, str | None]:
        """(content, refusal) for a chat: exactly one of them is text."""
        text = "\n".join(m.get("content") or "" for m in messages)
        found = _QUERY_LINE.search(text)
        query = json.loads(found[1]) if found else None
        if shown := _DOCUMENT_LINE.search(text):
            return json.dumps({"grade": self._grade(query or "", json.loads(shown[1]))}), None
        if query not in self._by_query:
            return None, "The simulated language model knows nothing about this query."
        irrelevant, malformed, pick, kind = self._draws(text)
        own = self._by_query[query]
        rows = range(len(self._documents)) if irrelevant < self._config.irrelevant_rate else own
        answer = _as_answer(self._documents[rows[int(pick * len(rows))]])
        if malformed < self._config.malformed_rate:
            return _malformed(answer, int(kind * 4)), None
        return json.dumps(answer, ensure_ascii=False), None

    def _grade(self, query: str, document: dict[str, str]) -> str:
        """As a judge: whether it is a hidden item that answers the query, or one that answers a query like it."""
        answers = self._queries_of.get(_title_and_caption(document), set())
        if query in answers:
            return "very relevant"
        return "relevant" if any(set(query.split()) & set(other.split()) for other in answers) else "irrelevant"

    def _draws(self, text: str) -> list[float]:
        """Four numbers in [0, 1) that depend on the seed and the prompt alone."""
        words = mix(hash_texts([text], self._config.seed), np.arange(4, dtype=np.uint64))
        return ((words >> np.uint64(11)) * 2.0**-53).tolist()


@contextmanager
def serve(hidden: str | Path, config: SimulatedLLMConfig | None = None) -> Iterator[str]:
    """Serves in a thread and gives the base URL, at a free port."""
    server = _server(SimulatedLLM(hidden, config or SimulatedLLMConfig()), port=0)  # a free one
    thread = threading.Thread(target=server.serve_forever, name="simulated-llm", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def stand_in(
    hidden: Path, config: SimulatedLLMConfig, endpoint: EndpointConfig, who: str, model: str, known: str
) -> Iterator[EndpointConfig]:
    """The endpoint of a simulated model that is started for as long as the block runs, and said to be one.

    Args:
      who: what it is called on stderr.
      known: what its answers depend on. A hash of it is part of the model's name, under which a journal keeps answers:
        another simulated model must not be answered for by this one.
    """
    with serve(hidden, config) as url:
        print(f"   a SIMULATED {who} answers at {url}", file=sys.stderr)
        name = f"{model}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"
        yield replace(endpoint, base_url=url, model=name)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError(str(path), "no such file; `python -m crops_jax.simulate_logs` writes it")
    table = pq.read_table(path)
    missing = [name for name in (*TEXT_FIELDS, "queries") if name not in table.column_names]
    if missing or not table.num_rows:
        raise InputError(str(path), [f"column {name} is missing" for name in missing] or [_NOTHING_HIDDEN])
    return table


def _as_answer(document: dict[str, str]) -> dict[str, str]:
    caption = document["photo_caption"] or document["ocr_cover"]
    return {
        "ocr_cover": document["ocr_cover"] or " ".join(caption.split()[:_TITLE_WORDS]),
        "photo_caption": caption,
        "click_query": document["click_query"],
        "keywords": document["keyword"],
    }


def _title_and_caption(document: dict[str, str]) -> tuple[str, str]:
    return strip_blanks(document["ocr_cover"]), strip_blanks(document["photo_caption"])


def _malformed(answer: dict[str, Any], kind: int) -> str:
    match kind:
        case 0:
            return f"Sure! Here is a video about it: {answer['ocr_cover']}"
        case 1:
            return json.dumps({name: text for name, text in answer.items() if name != "keywords"})
        case 2:
            return json.dumps(answer | {"keywords": [answer["keywords"].split("|")]})
        case _:
            return json.dumps(answer | {"keywords": "first, second, third"})


def _server(model: SimulatedLLM, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        server_version = "SimulatedLLM"
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: two would wait for each other (Nagle, delayed ACK)

        def do_GET(self) -> None:
            self._reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "simulated"}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/v1/chat/completions":
                return self._reply(404, {"error": {"message": f"no such path {self.path}"}})
            try:
                messages = json.loads(body)["messages"]
            except (ValueError, KeyError, TypeError) as error:
                return self._reply(400, {"error": {"message": f"not a chat request: {error}"}})
            self._reply(200, _completion(messages, *model.answer(messages)))

        def _reply(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # one line a request would drown the progress bar
            return

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _completion(messages: Sequence[dict[str, str]], content: str | None, refusal: str | None) -> dict[str, Any]:
    asked = sum(len((m.get("content") or "").split()) for m in messages)
    told = len((content or refusal or "").split())
    return {
        "id": "simulated",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": content, "refusal": refusal},
        }],
        "usage": {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told},
    }  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Serves the simulated language model until it is interrupted."""

    hidden: str
    """hidden_items.parquet of a simulated world."""
    port: int = 8765
    """Port on this machine."""
    model: SimulatedLLMConfig = field(default_factory=SimulatedLLMConfig)
    """How often it errs."""


def main() -> None:
    """The command."""
    command = tyro.cli(Command, use_underscores=True)
    server = _server(SimulatedLLM(command.hidden, command.model), command.port)
    print(f"SIMULATED language model {MODEL!r} at http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    run_command(main)
