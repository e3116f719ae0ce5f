# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Guard of the page: requests that are too large or would have the server fetch something, and uploads that are
refused.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import gradio
from PIL import Image, UnidentifiedImageError

from ..images.decoding import BeyondLimitsError, UnreadableImageError, open_image, read_image
from ..images.limits import ImageLimits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# gradio would fetch any public address that a visitor names behind these, which makes a proxy of the page.
_FETCHES = re.compile(r"/proxy=|/file[=/]\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class TooLargeError(Exception):
    """The body of a request went beyond the limit."""


class RequestGuard:
    """ASGI middleware: 403 for addresses elsewhere, 413 for bodies above the limit, declared or not.

    Args:
        app: Application that it stands before.
        most_bytes: Limit of a request's body.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _FETCHES.search(scope["path"]):
            await _refuse(send, 403, "This page serves nothing from elsewhere.")
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.most_bytes:
            await _refuse(send, 413, f"A request may have up to {self.most_bytes:,} bytes.")
            return
        await self._counted(scope, receive, send)

    async def _counted(self, scope: Message, receive: Receive, send: Send) -> None:
        received, has_started = 0, False

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most_bytes:
                raise TooLargeError
            return message

        async def noting(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                if received > self.most_bytes:  # some frameworks make 400 of any error while they read
                    message["status"] = 413
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            await self.app(scope, counting, noting)
        except TooLargeError:
            if not has_started:
                await _refuse(send, 413, f"A request may have up to {self.most_bytes:,} bytes.")


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


MOST_BYTES = 10 * 2**20
# A small file can hold very many pixels.
UPLOADS = ImageLimits(min_side=1, max_side=40_000_000, max_pixels=40_000_000, max_bytes=MOST_BYTES)


def upload_field(**options: Any) -> gradio.Image:
    """Return a `gradio.Image` that takes uploaded files alone: by itself it would also fetch addresses that a visitor
    names.

    The sentences of its errors are constant: gradio shows them as HTML, and a file's name is the visitor's.
    """
    field = gradio.Image(**options)
    to_cache, to_cache_later = field.move_resource_to_block_cache, field.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        if payload.path is None or (payload.url or "").startswith("data:"):
            raise _refusal("Upload the image as a file.")
        return read_upload(payload.path)

    def move(place: Any) -> str | None:
        _require_file(place)
        return to_cache(place)

    async def move_later(place: Any) -> str | None:
        _require_file(place)
        return await to_cache_later(place)

    # Not by a subclass: gradio writes a stub beside the source of each one that it meets.
    for name, method in (
        ("preprocess", preprocess),
        ("move_resource_to_block_cache", move),
        ("async_move_resource_to_block_cache", move_later),
    ):
        setattr(field, name, method)
    return field


def read_upload(path: str) -> Image.Image:
    """Return the image in a file, right way up.

    Raises:
        gradio.Error: no image, a damaged one, or one of too many pixels.
    """
    try:
        with open_image(path):
            pass
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _refusal("This file is not an image that can be read here. Try a JPEG, PNG or WebP.") from error
    try:
        return read_image({"path": path, "bytes": None}, [Path(path).parent], UPLOADS)
    except BeyondLimitsError as error:
        raise _refusal("This image is too large or too narrow. Make it smaller and try again.") from error
    except UnreadableImageError as error:
        raise _refusal("This image is damaged and cannot be read to its end.") from error


def _require_file(place: Any) -> None:
    if "://" in str(place):
        raise _refusal("Upload the image as a file; addresses are not opened.")


def _refusal(sentence: str) -> gradio.Error:
    return gradio.Error(sentence, title="Please try another image", print_exception=False)
