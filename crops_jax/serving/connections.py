"""Connections on which no request comes: they are closed, so that others find room."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_S = 10.0  # from the first byte of a request, or from the connection, to the end of its head
_OTHER_FILES = 100  # that a server may have open beside its connections


class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Waits `HEAD_S` for the head of a request, and takes no more connections than there are files to open.

    Where no file is left asyncio tries the connections that wait again and again, and logs each failure.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As uvicorn's; a connection too many is closed at once."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's."""
        super().data_received(data)
        if not self._without_request():
            self._stop_waiting()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _without_request(self) -> bool:
        """Whether what came so far is no head of a request that is still to be answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._without_request():
            self.transport.abort()


def backlog() -> int:
    """Connections that may wait: asyncio accepts as many before the first of them is made."""
    return min(2048, _files() // 2)


def most_connections() -> int:
    """How many are open at a time: one takes a file."""
    return max(_files() - backlog() - _OTHER_FILES, _OTHER_FILES)


def _files() -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if most == resource.RLIM_INFINITY else most
