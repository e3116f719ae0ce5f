# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, Inference Endpoints.

Requests run in a thread of their own: answers come in while images are read and rows are written, Ctrl-C ends a wait,
and a notebook's own event loop is left alone.
"""

import asyncio
import base64
import hashlib
import io
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from itertools import cycle
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient, ChatCompletionOutput, is_offline_mode
from PIL import Image

from .backend import Reply, Work
from .event_loop import event_loop
from .patience import Failure, Patience, Retries
from .perspectives import Perspective
from .prompts import prompt_of

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
        url: of the server, with or without `/v1` at its end.
        model: what the server calls the captioner.
        token: what the server knows its users by. It is sent to this server only and never logged; the token of the
            Hub is not sent unless it is given here.
        concurrency: images that are asked about at a time.
        patience: how long an answer is waited for, and how often it is asked for again.
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
                f"Got model={model!r}, concurrency={concurrency}, image_format={image_format!r}; expected the name of "
                f"a model on the server, 1 or more, and one of {', '.join(IMAGE_FORMATS)}."
            )
        if is_offline_mode():
            raise ValueError(
                "Got HF_HUB_OFFLINE=1, with which huggingface_hub's client asks no server at all. Unset it for this "
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
        """One reply per image and perspective, as they come.

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
        """As a data URL."""
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
    """The text, and whether it ended before its tokens ran out; raises `ValueError` for what is no such answer."""
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
        raise ValueError(f"Got the server {url!r}; expected an address such as http://localhost:8000. Correct it.")
    if parts.username or parts.password:
        raise ValueError("Got a server's address with a user or password in it. Give what is secret as the token.")
