"""`python -m crops_jax.serve BUNDLE [BUNDLE]`: answers searches, and shows in a browser what each bundle finds.

SIGTERM ends it when what was asked is answered. SIGHUP makes it read the same paths again, the writer of suggestions
too: put a new bundle in the place of the old one, as a whole, or point a link to it, and no request is dropped.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import traceback
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import tyro

from crops_jax.errors import InputError, brought_by, run_command
from crops_jax.progress import stage
from crops_jax.serving.config import ServeConfig
from crops_jax.suggestions.suggester import Asked

if TYPE_CHECKING:
    from crops_jax.serving.engine import Shelf
    from crops_jax.suggestions.suggester import Suggester


def run(config: ServeConfig) -> None:
    """Serves until it is told to stop.

    Raises:
      InputError: a bundle does not verify, the address is taken, or the extra `serve` is not installed.
    """
    try:
        import uvicorn

        from crops_jax.serving.app import make_app
        from crops_jax.serving.connections import BoundedProtocol, backlog
        from crops_jax.serving.engine import Shelf
    except ModuleNotFoundError as error:
        raise InputError("serve", f"{error.name} is missing; {brought_by('serve')}") from None
    listening = _listen(config)

    async def serve() -> None:
        shelf = Shelf(config, partial(_writer, config.writer) if config.writer else None)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: _background(_take_anew(shelf)))
        with stage("reading and checking bundles"):
            shelf.open()
        settings = uvicorn.Config(
            make_app(shelf, config), access_log=False, log_level="warning", server_header=False,
            http=BoundedProtocol, ws="none", timeout_graceful_shutdown=config.grace_s, backlog=backlog(),
        )  # fmt: skip
        for engine in shelf.engines:
            bundle = engine.bundle
            print(f"{bundle.title}: {len(bundle.ids)} documents, {bundle.search} search, {bundle.path}")
        if shelf.writer is not None:
            print(f"suggestions: {config.writer}")
        host, port = listening.getsockname()[:2]
        print(f"open http://{f'[{host}]' if ':' in host else host}:{port}/ in a browser (Ctrl-C stops)", flush=True)
        await uvicorn.Server(settings).serve(sockets=[listening])

    # uvicorn raises the signal again when it has stopped; by then there is nothing more to do for it.
    signal.signal(signal.SIGTERM, _leave)
    asyncio.run(serve())


def _writer(path: str) -> Suggester:
    from crops_jax.runs.exported_writer import load_exported_writer

    with stage("reading and checking the writer of suggestions"):
        writer = load_exported_writer(path)
        for prefix in ("a", 64 * "a "):  # compiles: the writer, and what encodes short and long prefixes
            writer.suggest(Asked([prefix], [None], [[]]))
    return writer


async def _take_anew(shelf: Shelf) -> None:
    try:
        await shelf.take_anew()
        print("bundles taken anew: " + ", ".join(str(e.bundle.path) for e in shelf.engines), flush=True)
        if shelf.writer is not None:
            print("the writer of suggestions, too", flush=True)
    except Exception as error:  # nobody awaits this task, who would tell of a bug or of a folder that may not be read
        said = f"error: {error}" if isinstance(error, InputError) else traceback.format_exc().rstrip()
        print(f"{said}\nwhat was read before is served further", file=sys.stderr, flush=True)


_tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references


def _background(work: Coroutine[None, None, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _listen(config: ServeConfig) -> socket.socket:
    """The socket to listen on, opened before anything is loaded, so that a taken port is known at once."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((config.host, config.port), family=family, backlog=2048)
        # Connections inherit it. asyncio sets it itself only on sockets that name their protocol, and these do not: the
        # second part of an answer would wait 40 ms for the client's word that the first one came.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{config.host}:{config.port}", f"cannot be listened on ({error}); give another --port or --host"
        ) from None


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


def main() -> None:
    """Serves the bundles of the command line."""
    about = __doc__.split("\n\n")[0]
    run(tyro.cli(ServeConfig, prog="python -m crops_jax.serve", use_underscores=True, description=about))


if __name__ == "__main__":
    run_command(main)
