# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, Inference Endpoints.

Requests run in an event loop in a thread of their own. Answers come in while images are read and rows are written,
Ctrl-C ends a wait, nothing that hangs can keep the process running, and a notebook's own event loop is left alone.
"""

import asyncio
import base64
import hashlib
import io
import logging
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import cycle
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient, ChatCompletionOutput, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from PIL import Image

from .captioner import Reply, Work
from .perspectives import Perspective, prompt_of

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
    """Limits of waiting for a server.

    Args:
        timeout: seconds for one attempt, from connecting to the last byte.
        attempts: Attempts to get one answer.
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
            raise ValueError(f"The limits are {self}; expected a timeout and a pause above 0, and 1 attempt or more.")

    def pause(self, attempt: int) -> float:
        """Seconds after a failed `attempt`, of which the first is 0."""
        return float(min(_LONGEST_PAUSE, self.first_pause * 2 ** min(attempt, 30)))


class Failure(NamedTuple):
    """Why there is no answer.

    Args:
        reason: Reason in words.
        is_passing: True if the next attempt may succeed.
        is_hopeless: True if every other request would fail, too.
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
        """Return what `send` gives, or its last failure: an error of huggingface_hub's client, or a `ValueError` for a
        bad answer.
        """
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


logger = logging.getLogger(__name__)

_SECONDS_TO_STOP = 10.0


@contextmanager
def event_loop() -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncExitStack]]:
    """Provide a running loop, and what to close in it at the end, after all that still runs in it has been cancelled.

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


IMAGE_FORMATS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95, "subsampling": 0}, "png": {"compress_level": 1}}
_IMAGES_PER_CLIENT = 50  # a client of huggingface_hub has 100 connections at most, and waits for a free one
_MOST_FAILED_IMAGES = 100  # in a row without any answer: the server is lost, and no image to blame
Replies = SimpleQueue[Reply | Future[None]]


class ServerError(Exception):
    """Why a server is asked nothing more."""


class RemoteBackend:
    """A server of a vision-language model.

    What is asked about one image is asked one after the other, and the image comes first: a server that caches
    prefixes, as vLLM does, reads it once.

    Args:
        url: Address of the server, with or without `/v1` at its end.
        model: Name that the server gives the captioner.
        token: Secret by which the server knows its users. It is sent to this server only and never logged. The token
            of the Hub is not sent unless it is given here.
        concurrency: images that are asked about at a time.
        patience: Limits of waiting for an answer and of asking again.
        image_format: `jpeg`, or `png` for drawings and text, which has every pixel and several times the bytes.

    Raises:
        ValueError: no address of http or https or one with a password in it, no model, a value out of range, or
            huggingface_hub is in offline mode.

    Example: `list(RemoteBackend("http://localhost:8000", "Qwen/Qwen2.5-VL-7B-Instruct").answer(work))`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token: str | None = None,
        concurrency: int = 16,
        patience: Patience | None = None,
        image_format: str = "jpeg",
    ) -> None:
        _require_address(url)
        if not model.strip() or concurrency < 1 or image_format not in IMAGE_FORMATS:
            raise ValueError(
                f"`model` is {model!r}, `concurrency` {concurrency}, `image_format` {image_format!r}; expected the "
                f"name of "
                f"a model on the server, 1 or more, and one of {', '.join(IMAGE_FORMATS)}."
            )
        if is_offline_mode():
            raise ValueError(
                "HF_HUB_OFFLINE is 1, with which huggingface_hub's client asks no server at all. Unset it for this "
                "process; nothing is fetched from the Hub."
            )
        self.captioner = model
        self.revision = ""
        self.concurrency = concurrency
        self.image_format = image_format
        self._url = url
        self._token = token
        self._retries = Retries(patience or Patience())
        self._failed_images = 0

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        """Yield one reply per image and perspective, as they come.

        Raises:
            ValueError: a perspective has no prompt.
            ServerError: the server knows not the model or the token, or does not answer any more.
        """
        images, running, replies = iter(work), 0, Replies()
        self._failed_images = 0
        with event_loop() as (loop, exits):
            clients = cycle(self._clients(exits))
            while True:
                while running < self.concurrency and (each := next(images, None)) is not None:
                    answering = self._answer_image(each, next(clients), replies)
                    asyncio.run_coroutine_threadsafe(answering, loop).add_done_callback(replies.put)
                    running += 1
                if not running:
                    return
                got = replies.get()
                if isinstance(got, Reply):
                    yield got
                else:
                    got.result()
                    running -= 1

    def _clients(self, exits: AsyncExitStack) -> list[AsyncInferenceClient]:
        number = self.concurrency // _IMAGES_PER_CLIENT + 1
        # Without a token, huggingface_hub would send that of the Hub to whatever server this is.
        key = self._token or "none"
        clients = [AsyncInferenceClient(base_url=self._url, api_key=key) for _ in range(number)]
        for client in clients:
            exits.push_async_callback(client.close)
        return clients

    async def _answer_image(self, work: Work, client: AsyncInferenceClient, replies: Replies) -> None:
        try:
            picture = await asyncio.to_thread(self._encode, work.image)
        except (OSError, ValueError) as error:  # more pixels than the format has room for
            for perspective in work.perspectives:
                replies.put(Reply(work.image_id, perspective, error=f"{type(error).__name__}: {error}"))
            return
        is_answered = False
        for perspective in work.perspectives:
            outcome = await self._ask(client, picture, work.image_id, perspective)
            is_answered |= not outcome.error
            replies.put(outcome)
        self._failed_images = 0 if is_answered else self._failed_images + 1
        if self._failed_images >= _MOST_FAILED_IMAGES:
            raise ServerError(
                f"The server answered nothing about {self._failed_images} images in a row; their rows say why. See to "
                "the server, and run again with failed rows retried."
            )

    async def _ask(self, client: AsyncInferenceClient, picture: str, image_id: str, perspective: Perspective) -> Reply:
        request = _request(picture, image_id, perspective)

        async def send() -> Reply:
            output = await client.chat_completion(**request, model=self.captioner)
            text, finished = _read(output)
            return Reply(image_id, perspective, text, finished)

        outcome = await self._retries.ask(send)
        if not isinstance(outcome, Failure):
            return outcome
        reason = (
            outcome.reason.replace(self._token, "***") if self._token else outcome.reason
        )  # servers repeat it when they refuse it
        if outcome.is_hopeless:
            raise ServerError(f"The server refuses {self.captioner!r}: {reason}. Correct the model, URL or token.")
        return Reply(image_id, perspective, error=reason)

    def _encode(self, image: Image.Image) -> str:
        """Encode an image as a data URL."""
        file = io.BytesIO()
        image.save(file, self.image_format, **IMAGE_FORMATS[self.image_format])
        return f"data:image/{self.image_format};base64,{base64.b64encode(file.getvalue()).decode()}"


def _request(picture: str, image_id: str, perspective: Perspective) -> dict[str, Any]:
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": prompt_of(perspective)},
    ]
    sampling: dict[str, Any] = {}
    if perspective.temperature:  # asked again, a server that heeds the seed answers the same
        seed = hashlib.sha256("\n".join([image_id, perspective.name, perspective.prompt_hash]).encode()).digest()
        sampling = {"top_p": perspective.top_p, "seed": int.from_bytes(seed[:4], "big") >> 1}
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": perspective.max_new_tokens,
        "temperature": perspective.temperature,
        **sampling,
    }


def _read(output: ChatCompletionOutput) -> tuple[str, bool]:
    """Return the text, and whether it ended before its tokens ran out; `ValueError` for anything else."""
    match output:
        case {"choices": [{"message": {"content": str() | None as text}, "finish_reason": str() as end}, *_]}:
            return text or "", end != "length"
    raise ValueError(f"no text in {str(output)[:100]!r}")


def _require_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole:
        raise ValueError(f"`url` is {url!r}; expected an address such as http://localhost:8000. Correct it.")
    if parts.username or parts.password:
        raise ValueError(
            "`url` has a user or a password in it; expected a plain address. Give what is secret as the token."
        )
