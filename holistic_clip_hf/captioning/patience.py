# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Patience with a server: what is asked again, when everybody waits, and when the server counts as lost."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import NamedTuple, TypeVar

from huggingface_hub.utils import httpx

LONGEST_WAIT = 600.0  # seconds; a server that wants to be left alone for longer is not waited for
_LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the server names a time
_SECONDS_PER_COMPLAINT = 60.0
_LONGEST_REASON = 300  # characters; servers send whole web pages
Answered = TypeVar("Answered")
logger = logging.getLogger(__name__)


class Kind(Enum):
    """Consequence of a failure."""

    AGAIN = auto()  # the next attempt may succeed
    BUSY = auto()  # it will, later: everybody waits, and it costs no attempt
    AWAY = auto()  # as AGAIN, but nobody is there: if all attempts end so, and nobody was answered, the run ends
    ITEM = auto()  # this question is refused
    DOUBTFUL = auto()  # this question is refused, or every question
    HOPELESS = auto()  # every question is


# Not allowed, not paid, no such model or address: the same for every image. 403 may also be said of one image.
_HOPELESS = (401, 402, 404, 405, 407)
_AGAIN = (408, 409, 425)  # request timeout, conflict, too early
_AWAY = (502, 503)  # a gateway whose server is not there


@dataclass(frozen=True)
class Patience:
    """Limits of waiting for a server.

    Args:
        timeout: seconds for one attempt, from connecting to the last byte.
        attempts: Attempts to get one answer. Being told to wait is not one.
        first_pause: seconds before the second attempt, twice as many before each one after that, up to a
            minute.
        longest_silence: seconds in which nobody is answered, after which the server counts as lost; no less than two
            timeouts.

    Raises:
        ValueError: a number that is not above 0.
    """

    timeout: float = 300.0
    attempts: int = 6
    first_pause: float = 1.0
    longest_silence: float = 600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:  # NaN is not either
                raise ValueError(f"`{name}` is {value}; expected a number above 0. Raise it.")

    def pause(self, attempt: int) -> float:
        """Return the seconds after a failed `attempt`, of which the first is 0."""
        return float(min(_LONGEST_PAUSE, self.first_pause * 2 ** min(attempt, 30)))

    @property
    def silence(self) -> float:
        """Seconds without any answer that are borne."""
        return max(self.longest_silence, 2 * self.timeout)


class Failure(NamedTuple):
    """Reason why a question was not answered.

    Args:
        reason: Reason in words.
        kind: Consequence.
        wait: seconds for which the server wants to be left alone; 0 if it does not say.
    """

    reason: str
    kind: Kind = Kind.AGAIN
    wait: float = 0.0


class RefusedError(Exception):
    """An answer that says no, and the `failure` that it is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Retries:
    """Requests to one server, with patience. If it is busy, every request waits.

    `answers` counts what it answered so far.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.answers = 0
        self._last_answer = float("-inf")
        self._quiet_until = 0.0
        self._refused_at = 0.0
        self._refusals = 0  # in a row, several at the same time being one; an answer takes one back
        self._complained_at = float("-inf")

    async def ask(self, send: Callable[[], Awaitable[Answered]], attempts: int | None = None) -> Answered | Failure:
        """Return what `send` gives, or its last failure: a `RefusedError`, an error of the connection, or a
        `ValueError` for a bad answer.
        """
        begin, left = time.monotonic(), attempts or self.patience.attempts
        while True:
            await self._wait_for_quiet()
            sent = time.monotonic()
            outcome = await self._try(send)
            if not isinstance(outcome, Failure):
                self.answers, self._last_answer = self.answers + 1, time.monotonic()
                self._refusals = max(0, self._refusals - 1)
                return outcome
            silence = time.monotonic() - max(begin, self._last_answer)
            if outcome.kind in (Kind.AGAIN, Kind.BUSY, Kind.AWAY) and silence >= self.patience.silence:
                reason = f"{outcome.reason}; nothing was answered for {silence:,.0f} seconds"
                return Failure(reason, Kind.HOPELESS)
            if outcome.kind is Kind.BUSY:
                self._pause(sent, outcome.wait)
            elif outcome.kind not in (Kind.AGAIN, Kind.AWAY):
                return outcome
            elif (left := left - 1) == 0:
                return self._last_failure(outcome, attempts, is_alone=self._last_answer < begin)
            self._complain(outcome.reason)
            if outcome.kind is not Kind.BUSY:
                tried = (attempts or self.patience.attempts) - left
                await asyncio.sleep(self.patience.pause(tried - 1) * random.uniform(0.5, 1))

    async def _try(self, send: Callable[[], Awaitable[Answered]]) -> Answered | Failure:
        try:
            async with asyncio.timeout(self.patience.timeout):
                return await send()
        except RefusedError as error:
            return error.failure
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, RecursionError) as error:
            return _failure(error, self.patience)

    def _last_failure(self, failure: Failure, attempts: int | None, *, is_alone: bool) -> Failure:
        """Judge a failure after all attempts, with `is_alone` if nobody else was answered meanwhile either."""
        kind = Kind.HOPELESS if failure.kind is Kind.AWAY and is_alone else failure.kind
        return Failure(f"{failure.reason} (attempts: {attempts or self.patience.attempts})", kind)

    async def _wait_for_quiet(self) -> None:
        while (quiet := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(quiet + self.patience.first_pause * random.random())  # not all at the same moment

    def _pause(self, sent: float, wait: float) -> None:
        now = time.monotonic()
        if sent >= self._refused_at:  # those under way when another was refused are refused with it
            self._refusals, self._refused_at = self._refusals + 1, now
        self._quiet_until = max(self._quiet_until, now + (wait or self.patience.pause(self._refusals - 1)))

    def _complain(self, reason: str) -> None:
        """Log why it takes long, now and then."""
        now = time.monotonic()
        if now - max(self._complained_at, self._last_answer) >= _SECONDS_PER_COMPLAINT:
            self._complained_at = now
            logger.warning("The server does not answer, and is asked again: %s.", reason)


def _failure(error: Exception, patience: Patience) -> Failure:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return Failure(f"the connection failed: {type(error).__name__}: {short(str(error))}", Kind.AWAY)
    if isinstance(error, TimeoutError):
        return Failure(f"no answer within {patience.timeout:g} seconds")
    is_connection = isinstance(error, httpx.HTTPError)
    kind = "the connection failed" if is_connection else "the server's answer cannot be read"
    return Failure(f"{kind}: {type(error).__name__}: {short(str(error))}")


def refusal(status: int, headers: Mapping[str, str], said: str) -> Failure:
    """Return what an HTTP status above 399 means.

    Args:
        headers: Headers of the answer, by lower-case names.
        said: Text of the server.
    """
    wait, reason = retry_after(headers), f"HTTP {status}: {short(said)}"
    if wait is not None and wait > LONGEST_WAIT and status in (429, 503):
        return Failure(f"{reason}; it wants to be left alone for {wait:,.0f} seconds", Kind.HOPELESS)
    if status in _HOPELESS:
        return Failure(reason, Kind.HOPELESS)
    if status == 403:
        return Failure(reason, Kind.DOUBTFUL)
    if status == 429 or (status == 503 and wait is not None):
        return Failure(reason, Kind.BUSY, wait or 0.0)
    if status in _AWAY:
        return Failure(reason, Kind.AWAY)
    return Failure(reason, Kind.AGAIN if status in _AGAIN or status >= 500 else Kind.ITEM)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds for which a server wants to be left alone, given as milliseconds, seconds or a date.

    `None` if it does not say, or says something else.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def short(text: str) -> str:
    """Return a text on one line, cut to what a row has room for."""
    words = " ".join(text[: 10 * _LONGEST_REASON].split())
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]} ..."
