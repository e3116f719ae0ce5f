# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Asking a server again: what a failure means, how long to wait, when to give up."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError

LONGEST_WAIT = 600.0  # seconds; a server that wants to be left alone for longer is not waited for
_LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the server names a time
_LONGEST_REASON = 300  # characters; servers send whole web pages

Answered = TypeVar("Answered")

# Request timeout, conflict, too early, too many requests.
_PASSING = (408, 409, 425, 429)
# Not allowed, or no such model or address: the same for every image.
_HOPELESS = (401, 403, 404)


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Args:
        timeout: seconds for one attempt, from connecting to the last byte.
        attempts: for one answer.
        first_pause: seconds before the second attempt, twice as many before each one after that, up to a
            minute.

    Raises:
        ValueError: a number that is not above 0.
    """

    timeout: float = 300.0
    attempts: int = 6
    first_pause: float = 1.0

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and self.attempts >= 1 and self.first_pause > 0):
            raise ValueError(f"Got {self}; expected a timeout and a pause above 0, and 1 attempt or more.")

    def pause(self, attempt: int) -> float:
        """Seconds after a failed `attempt`, of which the first is 0."""
        return float(min(_LONGEST_PAUSE, self.first_pause * 2 ** min(attempt, 30)))


class Failure(NamedTuple):
    """Why there is no answer.

    Args:
        reason: in words.
        is_passing: whether the next attempt may succeed.
        is_hopeless: whether every other request would fail, too.
        wait: seconds for which the server wants to be left alone.
    """

    reason: str
    is_passing: bool = True
    is_hopeless: bool = False
    wait: float = 0.0


class Retries:
    """Asks one server with patience; a time for which it wants to be left alone holds for every request."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._quiet_until = 0.0

    async def ask(self, send: Callable[[], Awaitable[Answered]]) -> Answered | Failure:
        """What `send` gives, or its last failure: of huggingface_hub's client, or a `ValueError` for a bad answer."""
        failure = Failure("not asked")
        for attempt in range(self.patience.attempts):
            if attempt:
                await asyncio.sleep(self.patience.pause(attempt - 1) * random.uniform(0.5, 1))
            while (quiet := self._quiet_until - time.monotonic()) > 0:
                await asyncio.sleep(quiet + self.patience.first_pause * random.random())  # not all at the same moment
            try:
                async with asyncio.timeout(self.patience.timeout):
                    return await send()
            except (HTTPError, TimeoutError, ValueError, TypeError, RecursionError) as error:
                failure = _failure(error, self.patience)
            if not failure.is_passing:
                return failure
            self._quiet_until = max(self._quiet_until, time.monotonic() + failure.wait)
        return failure._replace(reason=f"{failure.reason} (attempts: {self.patience.attempts})")


def _failure(error: Exception, patience: Patience) -> Failure:
    # Addresses may hold secrets, and huggingface_hub's messages hold addresses.
    if isinstance(error, TimeoutError):
        return Failure(f"no answer within {patience.timeout:g} seconds")
    if isinstance(error, HfHubHTTPError):
        return _refused(error)
    kind = "the connection failed" if isinstance(error, HTTPError) else "the server's answer cannot be read"
    return Failure(f"{kind}: {type(error).__name__}: {_short(str(error))}")


def _refused(error: HfHubHTTPError) -> Failure:
    status = error.response.status_code
    wait = _retry_after(error.response.headers.get("retry-after", ""))
    reason = f"HTTP {status}: {_short(error.server_message or error.response.reason_phrase)}"
    if wait > LONGEST_WAIT:
        return Failure(f"{reason}; it wants to be left alone for {wait:,.0f} seconds", is_passing=False)
    return Failure(reason, status in _PASSING or status >= 500, status in _HOPELESS, wait)


def _retry_after(value: str) -> float:
    """Seconds, of a number of them or of a date; 0 for neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]} ..."
