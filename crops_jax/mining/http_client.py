"""The official client with HTTP settings of our own: no proxy for this machine, no redirect elsewhere, no endless body.

Imported only where something is asked: a training host has no client.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from queue import Empty, Queue
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import openai

from crops_jax.errors import InputError
from crops_jax.mining.budget import Ledger, estimated_tokens
from crops_jax.mining.replies import spent_tokens

if TYPE_CHECKING:
    import httpx2

_MAX_BODY_BYTES = 32 << 20
_SHORTEST_KEY = 12  # characters; what is shorter is no secret, and may be a word
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")  # say nothing about a body once it is read


class BudgetSpent(openai.OpenAIError):
    """This request would have gone beyond the budget, and was not sent."""


def open_client(base_url: str, key: str, timeout_s: float, retries: int, ledger: Ledger) -> openai.OpenAI:
    """A client that asks `base_url` and repeats what failed up to `retries` times, as the official client does.

    Every request is entered in `ledger`; one for which that has no room raises BudgetSpent.

    Proxies of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) are used, but never for this machine.

    Raises:
      InputError: no client can be built, for instance because the environment names a proxy of an unknown kind.
    """
    here = is_this_machine(urlsplit(base_url).hostname or "")
    try:
        http = _Http(timeout_s, here, ledger, key)
    except Exception as error:  # proxies and certificates of the environment fail in many types
        raise InputError(
            base_url,
            f"no client can be built ({type(error).__name__}: {error}); look at the environment variables HTTP_PROXY, "
            "HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE",
        ) from error
    return openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=retries, http_client=http)


def is_this_machine(host: str) -> bool:
    """Whether a host name or address is this machine's own.

    >>> [is_this_machine(h) for h in ("localhost", "127.0.0.2", "::1", "127.1", "10.0.0.1", "localhost.example.com")]
    [True, True, True, True, False, False]
    """
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.split("%", 1)[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # short forms: 127.1
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


class _Http(openai.DefaultHttpxClient):
    def __init__(self, timeout_s: float, direct: bool, ledger: Ledger, key: str):
        # Without the environment's proxies a client reads no certificates from it either; Python's own context does.
        verify = ssl.create_default_context() if direct else True
        hooks = {"response": [_refuse_redirect]}
        super().__init__(timeout=timeout_s, trust_env=not direct, verify=verify, event_hooks=hooks)
        self._most_s, self._ledger = timeout_s, ledger
        # Some endpoints send the request back in an error, and what is answered is shown and kept.
        whole = rb"(?<![\w-])" + re.escape(key.encode()) + rb"(?![\w-])"
        self._secret = re.compile(whole) if len(key) >= _SHORTEST_KEY else None

    def send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        """The reply with its whole body, whatever `stream` says: a body has a largest size and a longest time."""
        aside = self._ledger.take(len(request.content))
        if aside is None:
            raise BudgetSpent("the budget is spent")
        came, tokens = "lost", None
        try:
            response = self._answered(partial(super().send, request, stream=True), request)
            try:
                body = self._body(response)
            finally:
                response.close()
            came, tokens = f"status {response.status_code}", 0
            if response.status_code == 200:
                told = spent_tokens(body)
                tokens = sum(told) or estimated_tokens(len(request.content)) + estimated_tokens(len(body))
        except InputError:
            came, tokens = "redirect", 0
            raise
        except Exception as error:  # of the HTTP library, which differs between versions of the client
            came = "timeout" if "Timeout" in type(error).__name__ else "lost"
            raise
        finally:
            self._ledger.close(aside, came, tokens)
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_THE_WIRE]
        return type(response)(response.status_code, headers=headers, content=body, request=response.request)

    def _answered(self, send: Callable[[], httpx2.Response], request: httpx2.Request) -> httpx2.Response:
        """The reply once its headers are there. The library has a longest time for each read alone, and a header that
        comes drop by drop has many: it is waited for in a thread of its own.
        """
        came: Queue[httpx2.Response | BaseException] = Queue(1)
        given_up = threading.Event()

        def wait() -> None:
            try:
                answer = send()
            except BaseException as error:
                came.put(error)
                return
            came.put(answer)
            if given_up.is_set():
                answer.close()

        threading.Thread(target=wait, name="headers", daemon=True).start()
        try:
            found = came.get(timeout=self._most_s)
        except Empty:
            given_up.set()
            with suppress(Empty):  # it may have come in between
                if not isinstance(late := came.get_nowait(), BaseException):
                    late.close()
            # The library's own error, which the client repeats; one of the client's it would pass on.
            library = import_module(type(request).__module__.partition(".")[0])
            raise library.ReadTimeout("no headers in time", request=request) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def _body(self, response: httpx2.Response) -> bytes:
        chunks, size, until = [], 0, monotonic() + self._most_s
        for chunk in response.iter_bytes():
            chunks.append(chunk)
            size += len(chunk)
            if size > _MAX_BODY_BYTES:
                message = f"The body is longer than {_MAX_BODY_BYTES >> 20} MiB."
                raise openai.APIConnectionError(message=message, request=response.request)
            if monotonic() > until:
                raise openai.APITimeoutError(request=response.request)
        body = b"".join(chunks)
        return self._secret.sub(b"***", body) if self._secret else body


def _refuse_redirect(response: httpx2.Response) -> None:
    """Lets a request be sent again to the same host alone: prompts and key are for the host that was named."""
    if not response.has_redirect_location:
        return
    here = urlsplit(str(response.request.url))
    try:
        there = urlsplit(urljoin(here.geturl(), response.headers["location"]))
        same = there.hostname == here.hostname and (there.scheme, there.port) in (
            (here.scheme, here.port), ("https", None))  # fmt: skip
    except ValueError:
        there, same = urlsplit(""), False
    # After 301, 302 and 303 a client asks by GET, without the prompt.
    if same and response.status_code in (307, 308):
        return
    target = f"{there.scheme}://{there.netloc.rpartition('@')[2]}{there.path}"
    raise InputError(
        f"{here.scheme}://{here.netloc.rpartition('@')[2]}{here.path}",
        f"redirects to {target!r} (status {response.status_code}), which is not followed: the prompts and the key are "
        "for the host in base_url; set base_url to where the endpoint is",
    )
