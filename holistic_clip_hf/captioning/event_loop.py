# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""An event loop in a thread of its own, which nothing that hangs can keep running."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from threading import Thread

logger = logging.getLogger(__name__)

_SECONDS_TO_STOP = 10.0


@contextmanager
def event_loop() -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncExitStack]]:
    """A running loop, and what to close in it at the end, after all that still runs in it has been cancelled.

    Example: `with event_loop() as (loop, exits): asyncio.run_coroutine_threadsafe(work(), loop).result()`.
    """
    loop, exits = asyncio.new_event_loop(), AsyncExitStack()
    thread = Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()
    try:
        yield loop, exits
    finally:
        try:
            asyncio.run_coroutine_threadsafe(_stop(exits), loop).result(_SECONDS_TO_STOP)
        except TimeoutError:
            logger.warning("Requests do not stop within %g seconds and are left behind.", _SECONDS_TO_STOP)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS_TO_STOP)
        if not thread.is_alive():
            loop.close()


async def _stop(exits: AsyncExitStack) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await exits.aclose()
