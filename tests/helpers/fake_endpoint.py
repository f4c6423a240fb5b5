"""An OpenAI-compatible endpoint on this machine whose replies a test decides, and completions for it to send."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from crops_jax.mining.config import EndpointConfig

# What a request gets: the status, the body (bytes as they are, all else as JSON), and headers of its own.
Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]


def completion(content: Any, finish: str | None = "stop", usage: Any = "", **message: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": content, **message}
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13} if usage == "" else usage
    choice = {"index": 0, "message": message} | ({"finish_reason": finish} if finish else {})
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class LocalServer:
    """Serves on this machine while it is entered."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        self.server = _Server(("127.0.0.1", 0), handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with 5, some requests wait a second for a place and never reach the handler


class FakeEndpoint(LocalServer):
    """Serves while it is entered; `requests` holds (body, headers, target) of all it was asked."""

    def __init__(self, behave: Callable[[int], Reply]):
        self.requests: list[tuple[dict, Message, str]] = []
        self.behave = behave
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append((body, self.headers, self.path))
                status, reply, *headers = outer.behave(number)
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                given = {"Content-Type": "application/json", "Content-Length": str(len(data))}
                self.send_response(status)
                for name, value in (given | (headers[0] if headers else {})).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        super().__init__(Handler)

    @property
    def bodies(self) -> list[dict]:
        return [body for body, _, _ in self.requests]

    def config(self, **changes: Any) -> EndpointConfig:
        """A config that asks this endpoint once a question, one question at a time."""
        return replace(EndpointConfig(base_url=self.url, model="m", retries=0, concurrency=1), **changes)
