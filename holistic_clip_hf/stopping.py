# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Signals that end a command: Ctrl-C, and the SIGTERM by which clusters and containers end jobs."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and a launcher, such as torchrun, each send the signal of one Ctrl-C. Later ones are a person's.
_ECHO_SECONDS = 2.0


class Stopped(KeyboardInterrupt):
    """An end by a signal. Its text says what was saved, and how to go on.

    Args:
        signum: Number of the signal.
        sentence: Text for the user; empty if nothing is known.
    """

    def __init__(self, signum: int, sentence: str = "") -> None:
        super().__init__(sentence)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Exit code that a shell gives to a process that this signal ended, such as 130 and 143."""
        return 128 + self.signum


def raise_stopped(signum: int, frame: FrameType | None) -> NoReturn:
    """Raise an exception at a signal, so that what has begun is cleaned up.

    Raises:
        Stopped: always.
    """
    raise Stopped(signum)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Turn SIGTERM, which would end Python at once, into an exception, so that temporary files are removed.

    A handler that somebody else has set stays. Outside the main thread this does nothing.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopRequest:
    """Request to stop at the next good moment, made by a signal while `listen` lasts."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._since = 0.0

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take signals as requests. A second Ctrl-C, some seconds later, stops at once.

        Outside the main thread, where Python gives signals to nobody, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.signal(signum, self._take) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                # A handler that was not set from Python cannot be given back.
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self.signum = None

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._since > _ECHO_SECONDS:
            raise_stopped(signum, frame)


class DeafWorker:
    """Initialization of a data loader's worker that leaves signals to the process that started it.

    A signal to the whole process group would end the workers, and with them the step that is to be finished.

    Args:
        initialize: Further initialization, given the worker's number.
    """

    def __init__(self, initialize: Callable[[int], Any] | None) -> None:
        self.initialize = initialize

    def __call__(self, worker: int) -> None:
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        if self.initialize is not None:
            self.initialize(worker)
