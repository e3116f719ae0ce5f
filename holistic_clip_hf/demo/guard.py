# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Guard of the page against requests by another name, of another page, for what it does not need, large or slow ones.

A name that a stranger made lead to this machine (DNS rebinding) comes as a `Host` of its own, and a stranger's page
that sends a request has an `Origin` of its own.
"""

import asyncio
import ipaddress
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from .interface import JSON_PATHS, error_body
from .uploads import IMAGE_TYPES, MOST_BYTES, fault_of_upload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
BODY_SECONDS = 60.0  # for a request to arrive; 10 MB at 1.4 Mbit/s
OVERHEAD = 2**20  # bytes of a request besides the file in it
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})
# gradio would fetch any public address that a visitor names behind these, which makes a proxy of the page.
_FETCHES = re.compile(r"/proxy=|/file[=/]\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# What the page and clients of its interface ask for; gradio has more, some of which writes files.
_ROUTES = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(?:assets|static)/.*"
    r"|/gradio_api/(?:info|openapi\.json|app_id|login_check|theme\.css|startup-events|cancel|reset)/?"
    r"|/gradio_api/(?:upload|upload_progress|queue/join|queue/data)/?"
    r"|/gradio_api/call/\w+(?:/[0-9a-f]{32})?/?|/gradio_api/heartbeat/\w+|/gradio_api/file=.*"
    rf"|{'|'.join(map(re.escape, JSON_PATHS))}",
    re.DOTALL,
)
_FILES, _UPLOADS = "/gradio_api/file=", "/gradio_api/upload"
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class TooLargeError(Exception):
    """The body of a request went beyond the limit."""


class TooSlowError(Exception):
    """The body of a request did not arrive in time."""


class KnownHosts:
    """Names that the page is served under, and origins that may send requests to it.

    Args:
        host: Address that the server listens on.
        further: Further names, such as that of a proxy before it.
    """

    def __init__(self, host: str, further: Iterable[str] = ()) -> None:
        # Set where the page runs as a Space, behind the Hub's proxy: the name of that Space.
        space = os.environ.get("SPACE_HOST", "")
        self.further = {name.strip().casefold() for name in (*further, *space.split(","))} - {""}
        self.is_everywhere = host in EVERYWHERE
        self.names = LOOPBACK | {host.strip("[]").casefold()} | self.further
        if self.is_everywhere:
            self.names |= {socket.gethostname().casefold()}

    def allows(self, host: str) -> bool:
        """Tell whether a `Host` header names this page; the port does not count, since tunnels have their own."""
        name = name_of(host)
        return name in self.names or (self.is_everywhere and _is_address(name))

    def allows_origin(self, origin: str, host: str) -> bool:
        """Tell whether an `Origin` header is of this page itself, or of a further name."""
        try:
            sender = urlsplit(origin)
            return bool(sender.netloc) and (sender.netloc == host or sender.hostname in self.further)
        except ValueError:
            return False


def name_of(host: str) -> str:
    """Return the name in a `Host` header, without its port.

    >>> name_of("LOCALHOST:7860"), name_of("[::1]:7860")
    ('localhost', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].casefold()
    return host.rpartition(":")[0].casefold() if ":" in host else host.casefold()


def _is_address(name: str) -> bool:
    """Tell an address from a name, which might have been made to lead here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class RequestGuard:
    """ASGI middleware: 403 for other names, origins and addresses elsewhere, 404 for what the page does not need,
    413 for bodies above the limit, declared or not, 408 for those that are slow, 415 for uploads that are not images.

    Args:
        app: Application that it stands before.
        hosts: Names that the page is served under.
        most_bytes: Limit of a request's body.
        body_seconds: Time for a request's body to arrive.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        hosts: KnownHosts,
        most_bytes: int = MOST_BYTES + OVERHEAD,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.app, self.hosts, self.most_bytes, self.body_seconds = app, hosts, most_bytes, body_seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if refusal := self._refusal(scope):
            await _refuse(send, *refusal, path=scope["path"])
        elif scope["path"].rstrip("/") == _UPLOADS:
            await self._checked_upload(scope, receive, send)
        else:
            await self._counted(scope, receive, send)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Return status and reason where the head of a request is enough to refuse it."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self.hosts.allows(host):
            return 403, "This page is not served under this name. Start it with --allow-host and the name to allow it."
        if origin is not None and not self.hosts.allows_origin(origin, host):
            return 403, "This page takes no requests of other pages. Start it with --allow-host to allow their host."
        if _FETCHES.search(scope["path"]):
            return 403, "This page serves nothing from elsewhere."
        if not _ROUTES.fullmatch(scope["path"]):
            return 404, "This page has no such part."
        declared = headers.get(b"content-length", "0")
        if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > self.most_bytes:
            return 413, f"A request may have up to {self.most_bytes:,} bytes."
        return None

    async def _counted(self, scope: Message, receive: Receive, send: Send) -> None:
        body = _Body(receive, self.most_bytes, self.body_seconds)
        has_started = is_refused = False
        is_file = scope["path"].startswith(_FILES)

        async def noting(message: Message) -> None:
            nonlocal has_started, is_refused
            if is_refused:
                return
            if message["type"] == "http.response.start":
                has_started = True
                kind = dict(message.get("headers", [])).get(b"content-type", b"").partition(b";")[0].strip().decode()
                if is_file and message["status"] < 400 and kind not in IMAGE_TYPES:
                    is_refused = True
                    await _refuse(send, 403, "This page serves images alone.")
                    return
                if body.fault:  # some frameworks make 400 of any error while they read
                    message["status"] = body.fault
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            await self.app(scope, body.receive, noting)
        except (TooLargeError, TooSlowError):
            if not has_started:
                await self._refuse_body(send, body.fault, scope["path"])
        except (HTTPException, RuntimeError) as error:
            # gradio ends the stream of an answer that does not exist by an error, after it has said so in the stream.
            if not has_started or not isinstance(error.__cause__ or error, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b""})

    async def _refuse_body(self, send: Send, status: int, path: str) -> None:
        if status == 408:
            await _refuse(send, 408, f"A request has {self.body_seconds:.0f} seconds to arrive.", path)
        else:
            await _refuse(send, 413, f"A request may have up to {self.most_bytes:,} bytes.", path)

    async def _checked_upload(self, scope: Message, receive: Receive, send: Send) -> None:
        """Keep an upload only if it is an image, since what is kept is served to whoever names it."""
        start: Message = {}
        answer = bytearray()

        async def holding(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            else:
                answer.extend(message.get("body", b""))

        await self._counted(scope, receive, holding)
        if start["status"] == 200:
            fault = await asyncio.to_thread(_fault_of_uploads, bytes(answer))
            if fault:
                await _refuse(send, 415, fault)
                return
        await send(start)
        await send({"type": "http.response.body", "body": bytes(answer)})


class _Body:
    """Body of a request as it arrives, counted and timed; `fault` is the status that it leads to, or 0."""

    def __init__(self, receive: Receive, most_bytes: int, seconds: float) -> None:
        self._receive, self._most_bytes = receive, most_bytes
        self._num_bytes, self._is_whole, self.fault = 0, False, 0
        self._until = asyncio.get_running_loop().time() + seconds

    async def receive(self) -> Message:
        """Return the next part; once all have come, wait for the visitor to leave, however long."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            self.fault = 408
            raise TooSlowError from error
        self._is_whole = not message.get("more_body", False)
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._most_bytes:
            self.fault = 413
            raise TooLargeError
        return message


def _fault_of_uploads(answer: bytes) -> str:
    """Return why files that were stored may not be, after removing them; nothing if all may."""
    paths = [Path(each) for each in json.loads(answer)]
    fault = next(filter(None, map(fault_of_upload, paths)), "")
    if fault:
        for path in paths:
            path.unlink(missing_ok=True)
    return fault


async def _refuse(send: Send, status: int, reason: str, path: str = "") -> None:
    """Answer with a reason, as JSON to programs."""
    is_json = path in JSON_PATHS
    kind = b"application/json" if is_json else b"text/plain; charset=utf-8"
    body = json.dumps(error_body(status, reason)) if is_json else reason
    headers = [(b"content-type", kind), (b"connection", b"close"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
