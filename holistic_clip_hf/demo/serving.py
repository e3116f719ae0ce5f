# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Serving of the page: no telemetry, no files of the machine, bounded requests, connections, uploads and memory."""

import asyncio
import atexit
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import gradio
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from ..stopping import StopRequest
from .guard import KnownHosts, RequestGuard
from .uploads import MOST_BYTES

logger = logging.getLogger(__name__)

MOST_WAITING = 256  # requests; beyond, visitors are asked to come back
MOST_SESSIONS = 64  # visitors that gradio keeps a state of, which this page does not use
MOST_CONNECTIONS = 512
HEAD_SECONDS = 10.0  # for the head of a request to arrive, at most twice that
_AT_WORK = object()  # in place of the request that a connection had last
_TEMPORARY = "GRADIO_TEMP_DIR"  # environment variable: where gradio stores uploads


class Address(NamedTuple):
    """Address that a page is served at, and further names that it may be asked for under."""

    host: str
    port: int | None
    allow_hosts: tuple[str, ...]


def serve_blocks(
    build: Callable[[], gradio.Blocks],
    address: Address,
    *,
    routes: Sequence[BaseRoute] = (),
    block: bool,
    **options: Any,
) -> gradio.Blocks:
    """Build and serve a page; with `block`, until Ctrl-C or a signal to terminate, after which no upload is left.

    Args:
        build: Function that returns the page.
        address: Address to listen on.
        routes: Further paths to serve, which the guard lets through.
        block: Wait until the page ends.
        options: Keywords of gradio's `launch`.
    """
    _upload_folder()
    blocks = build()
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=4, api_open=False)
    # Answers that nobody fetches are kept for so many visitors, and what is measured for so many requests. By itself
    # gradio keeps 2,000 answers, and makes statistics of 10,000 requests after each.
    blocks._queue.pending_messages_per_session.max_size = MOST_WAITING
    blocks._queue.ANALYTICS_MAX_EVENTS = MOST_WAITING
    _launch(blocks, address, routes, options)
    logger.info("The page is at %s", blocks.local_url)
    if block:
        _wait(blocks)
    return blocks


def _launch(blocks: gradio.Blocks, address: Address, routes: Sequence[BaseRoute], options: dict[str, Any]) -> None:
    guard = Middleware(RequestGuard, hosts=KnownHosts(address.host, address.allow_hosts))
    # `launch`, not `mount_gradio_app`: a mounted page of gradio 6.31 takes any path for an uploaded file.
    blocks.launch(
        server_name=address.host,
        server_port=address.port,
        share=False,
        quiet=True,
        show_error=False,
        prevent_thread_lock=True,
        max_file_size=MOST_BYTES,
        app_kwargs={"middleware": [guard], "routes": list(routes)},
        state_session_capacity=MOST_SESSIONS,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        footer_links=["api", "gradio"],
        _frontend=False,  # spares a check that gives the page 3 seconds, and else demands a public link
        **options,
    )
    _limit_connections(blocks.server.config)


@cache
def _upload_folder() -> str:
    """Make gradio store the uploads of this process in a new folder, which is removed when the process ends.

    gradio reads the environment whenever it looks for an upload, so there is one folder for all pages.
    """
    folder = tempfile.mkdtemp(prefix="holistic-clip-uploads-", dir=os.environ.get(_TEMPORARY))
    os.environ[_TEMPORARY] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _limit_connections(config: Any) -> None:
    """Bound the number of connections, and the time for which one may send no request.

    uvicorn has a limit for the time between requests, and none for a request that comes letter by letter. It reads
    the class of each new connection from here.
    """
    base: Any = config.http_protocol_class

    class LimitedProtocol(base):
        """Connection that is closed if, from one check to the next, it has no request at work and begins none."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._idle_since: Any = _AT_WORK
            self.loop.call_later(HEAD_SECONDS, self._check)

        def _check(self) -> None:
            if self.transport.is_closing():
                return
            is_idle = self.cycle is None or self.cycle.response_complete
            if is_idle and self._idle_since is self.cycle:
                self.transport.abort()
                return
            self._idle_since = self.cycle if is_idle else _AT_WORK
            self.loop.call_later(HEAD_SECONDS, self._check)

    config.http_protocol_class, config.limit_concurrency = LimitedProtocol, MOST_CONNECTIONS


def _wait(blocks: gradio.Blocks) -> None:
    """Wait until the page ends or the process is asked to, then close the page."""
    request = StopRequest()
    try:
        with request.listen():
            while blocks.is_running and request.signum is None:
                time.sleep(0.2)
    finally:
        blocks.close(verbose=False)
