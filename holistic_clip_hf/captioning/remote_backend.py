# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, Inference Endpoints.

Requests run in an event loop in a thread of their own. Answers come in while images are read and rows are written,
Ctrl-C ends a wait, nothing that hangs can keep the process running, and a notebook's own event loop is left alone.
"""

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

from PIL import Image

from ..storage import require_count
from .captioner import Reply, Work
from .chat_server import ChatServer
from .patience import Failure, Kind, Patience, Retries
from .perspectives import Perspective, prompt_of, seed_of
from .sent_pictures import IMAGE_FORMATS, SentLimits, data_url

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


_MOST_UNANSWERED = 10  # images in a row, before a picture that nobody minds tells whose fault it is
_PROBE_SIZE = (224, 224)
Replies = SimpleQueue[Reply | Future[None] | None]


class ServerError(Exception):
    """Reason why a server is asked nothing more."""


class RemoteBackend:
    """A server of a vision-language model.

    What is asked about one image is asked one after the other, and the image comes first: a server that caches
    prefixes, as vLLM does, reads it once. Failures are held back until something is answered: those of a server that
    is lost become no rows, and are asked again by the next run.

    Args:
        url: Address of the server. A path, such as `/v1` or `/v1beta/openai`, is kept as it is; without one, `/v1` is
            meant. Addresses of this machine are never reached through a proxy.
        model: Name that the server gives the captioner.
        token: Secret by which the server knows its users. It is sent to this server only and never logged. The token
            of the Hub is not sent unless it is given here.
        concurrency: images that are asked about at a time.
        patience: Limits of waiting for an answer and of asking again.
        image_format: `jpeg`, or `png` for drawings and text, which has every pixel and several times the bytes.
        limits: Limits of a picture that is sent.
        extra_body: Members of every request beside ours, as `{"chat_template_kwargs": {"enable_thinking": False}}`.
            `None` takes one of ours out, as `{"seed": None}` for a server that refuses seeds.

    Raises:
        ValueError: no address of http or https or one with a password in it, no model, or a value out of range.

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
        limits: SentLimits | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self._server = ChatServer(url, model, token, extra_body or {})
        if not model.strip():
            raise ValueError(f"`model` is {model!r}; expected the name of a model on the server. Correct it.")
        require_count("concurrency", concurrency)
        if image_format not in IMAGE_FORMATS:
            raise ValueError(
                f"`image_format` is {image_format!r}; expected one of {', '.join(IMAGE_FORMATS)}. Correct it."
            )
        self.captioner = model
        self.revision = self.weights = ""  # servers do not tell
        self.settings: Mapping[str, Any] = dict(extra_body or {})
        self.concurrency = concurrency
        self.image_format = image_format
        self._limits = limits or SentLimits()
        self._patience = patience or Patience()

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        """Yield one reply per image and perspective, as they come.

        Raises:
            ValueError: a perspective has no prompt.
            ServerError: the server does not know the model or the token, or does not answer any more. What it did not
                answer last has no replies.
        """
        images, running, replies = iter(work), 0, Replies()
        held: list[Reply] = []  # failures, until it is known that the server is not to blame
        with event_loop() as (loop, exits):
            session = _Session(self._server, self._patience, self._encode, replies)
            exits.push_async_callback(session.client.aclose)
            while True:
                while running < self.concurrency and (each := next(images, None)) is not None:
                    answering = session.answer_image(each)
                    asyncio.run_coroutine_threadsafe(answering, loop).add_done_callback(replies.put)
                    running += 1
                if not running:
                    yield from held
                    return
                got = replies.get()
                if isinstance(got, Reply) and got.error:
                    held.append(got)
                elif isinstance(got, Future):
                    got.result()
                    running -= 1
                else:
                    yield from held
                    held.clear()
                    if got is not None:
                        yield got

    def _encode(self, image: Image.Image) -> str:
        return data_url(image, self.image_format, self._limits)


class _Session:
    """One run of questions to a server; lives in the event loop."""

    def __init__(
        self, server: ChatServer, patience: Patience, encode: Callable[[Image.Image], str], replies: Replies
    ) -> None:
        self.client = server.client()
        self._server = server
        self._encode = encode
        self._replies = replies
        self._retries = Retries(patience)
        self._unanswered: set[str] = set()  # images in a row
        self._doubt = asyncio.Lock()

    async def answer_image(self, work: Work) -> None:
        """Put a reply for each perspective of an image.

        Raises:
            ServerError: no other image would be answered either.
        """
        try:
            picture = await asyncio.to_thread(self._encode, work.image)
        except (OSError, ValueError) as error:  # more pixels than the format has room for
            for perspective in work.perspectives:
                self._replies.put(Reply(work.image_id, perspective, error=f"{type(error).__name__}: {error}"))
            return
        for perspective in work.perspectives:
            self._replies.put(await self._ask(picture, work.image_id, perspective))

    async def _ask(self, picture: str, image_id: str, perspective: Perspective) -> Reply:
        question, budget = _question(picture, image_id, perspective), perspective.max_new_tokens
        outcome = await self._retries.ask(lambda: self._server.ask(self.client, question, budget))
        if not isinstance(outcome, Failure):
            self._unanswered.clear()
            return Reply(image_id, perspective, *outcome)
        if outcome.kind is Kind.HOPELESS:
            raise self._lost(outcome.reason)
        self._unanswered.add(image_id)
        is_first = outcome.kind is Kind.DOUBTFUL and not self._retries.answers
        if is_first or len(self._unanswered) >= _MOST_UNANSWERED:
            await self._require_an_answer(outcome.reason, perspective)
        return Reply(image_id, perspective, error=outcome.reason)

    async def _require_an_answer(self, reason: str, perspective: Perspective) -> None:
        """Ask about a picture that no filter minds and every model can read, to know if a failure is the server's.

        Raises:
            ServerError: it is not answered either.
        """
        answers = self._retries.answers
        async with self._doubt:
            if self._retries.answers > answers:  # while this one waited
                return
            question = _question(self._encode(Image.new("RGB", _PROBE_SIZE, "gray")), "", perspective)
            budget = perspective.max_new_tokens
            outcome = await self._retries.ask(lambda: self._server.ask(self.client, question, budget), attempts=1)
            if isinstance(outcome, Failure):
                raise self._lost(reason)
            self._unanswered.clear()
            self._replies.put(None)

    def _lost(self, reason: str) -> ServerError:
        says = "refuses" if reason.startswith(("HTTP 3", "HTTP 4")) else "does not answer for"
        return ServerError(
            f"The server {says} {self._server.model!r}: {reason}. Correct the model, URL or token, or see to the "
            "server, and run again to go on."
        )


def _question(picture: str, image_id: str, perspective: Perspective) -> dict[str, Any]:
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": prompt_of(perspective)},
    ]
    sampling: dict[str, Any] = {}
    if perspective.temperature:  # asked again, a server that heeds the seed answers the same
        sampling = {"top_p": perspective.top_p, "seed": seed_of(image_id, perspective)}
    return {
        "messages": [{"role": "user", "content": content}],
        "temperature": perspective.temperature,
        **sampling,
    }
