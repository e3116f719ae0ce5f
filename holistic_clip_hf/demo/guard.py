# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What never reaches the page: requests too large, and those that would have the server fetch something elsewhere."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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
        app: what it stands before.
        most_bytes: of a request's body.
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
