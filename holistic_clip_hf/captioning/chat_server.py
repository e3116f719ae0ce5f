# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""One server of OpenAI's chat completions: its address, what is sent, and how its answers are read.

Images and the token go to this server only. A redirect to another one is refused, and addresses of this machine are
never reached through a proxy.
"""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from huggingface_hub.utils import httpx

from ..storage import shown
from .patience import Failure, Kind, RefusedError, refusal

COMPLETIONS = "/chat/completions"
# By whoever decides that an answer is complete; all other reasons (length, content_filter, ...) leave it unfinished.
GOOD_ENDINGS = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
_FIXED = ("model", "messages", "stream")  # members of a question that are not for the user to change
_MOST_BYTES = 16_000_000  # of an answer
_MOST_REDIRECTS = 5
_REPEATING = (301, 302, 307, 308)  # "at another place"; 303 is for fetching something else


class ChatServer:
    """Client that sends questions to one model of one server.

    Args:
        url: Address of the server. A path is kept as it is; without one, `/v1` is meant.
        model: Name that the server gives the model.
        token: Secret by which the server knows its users.
        extra_body: Members of every question beside ours, such as `chat_template_kwargs`. `None` takes one of ours
            out.

    Raises:
        ValueError: no address of http or https, one with a password in it, or a token or member that cannot be sent.
    """

    def __init__(self, url: str, model: str, token: str | None, extra_body: Mapping[str, Any]) -> None:
        parts = _require_address(url)
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token):
            raise ValueError("`token` has spaces, line ends or signs beyond ASCII; expected a plain one. Correct it.")
        if refused := [name for name in _FIXED if name in extra_body]:
            raise ValueError(f"`extra_body` has {', '.join(refused)}; expected other members. Leave them out.")
        self.model = model
        self._token = token
        self._extra_body = dict(extra_body)
        self._budget = "max_tokens"
        path = parts.path.rstrip("/")
        path = path if path.endswith(COMPLETIONS) else (path or "/v1") + COMPLETIONS
        self.url = httpx.URL(urlunsplit(parts._replace(path=path, fragment="")))
        self._is_here = _is_loopback(str(parts.hostname))

    def client(self) -> httpx.AsyncClient:
        """Return a client that connects to this server directly if it is on this machine, else as the environment
        says.
        """
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        host = f"[{self.url.host}]" if ":" in self.url.host else self.url.host
        return httpx.AsyncClient(
            headers={"User-Agent": "holistic-clip-hf", **headers},
            timeout=None,  # of whole attempts, in `Retries`
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not (self._is_here and self.url.scheme == "http"),
            mounts={f"all://{host}": None} if self._is_here else None,
        )

    async def ask(self, client: httpx.AsyncClient, question: Mapping[str, Any], budget: int) -> tuple[str, bool]:
        """Return the text of an answer, and whether it ended by itself.

        Args:
            question: Members of the request, without the model and the budget.
            budget: Tokens of the answer.

        Raises:
            RefusedError: the server says no.
            httpx.HTTPError: the connection fails.
            ValueError, RecursionError: what it says is not an answer.
        """
        name = self._budget
        fields = {"model": self.model, **question, name: budget, "stream": False, **self._extra_body}
        body = json.dumps({key: value for key, value in fields.items() if value is not None}).encode()
        status, headers, content = await self._post(client, body)
        if status < 400:
            return read_answer(content)
        said = _message(content) or httpx.codes.get_reason_phrase(status)
        if status in (400, 422) and name == "max_tokens" and "max_completion_tokens" in said:
            self._budget = "max_completion_tokens"  # models that think refuse the older name
            return await self.ask(client, question, budget)
        if status in (404, 405):  # the path, since it is kept as it is given
            said = f"{said} ({self.url.path})"
        failure = refusal(status, headers, self._without_token(said))
        is_spent = b"insufficient_quota" in content  # OpenAI's 429 of an account that is empty
        raise RefusedError(failure._replace(kind=Kind.HOPELESS) if is_spent else failure)

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        url = self.url
        for _ in range(_MOST_REDIRECTS):
            request = client.build_request("POST", url, content=body, headers={"Content-Type": "application/json"})
            response = await client.send(request, stream=True, follow_redirects=False)
            try:
                status, headers = response.status_code, dict(response.headers)
                if not 300 <= status < 400:
                    return status, headers, await _read(response)
            finally:
                await response.aclose()
            url = self._redirected(status, url, headers.get("location", ""))
        raise RefusedError(Failure(f"HTTP {status}: more than {_MOST_REDIRECTS} redirects", Kind.HOPELESS))

    def _redirected(self, status: int, url: httpx.URL, location: str) -> httpx.URL:
        """Return where the same question is to be sent, or refuse."""
        try:
            target = url.join(location)
        except httpx.InvalidURL:
            target = httpx.URL()
        if status in _REPEATING and _origin(target) == _origin(url):
            return target
        # The origin alone: paths and queries may hold secrets.
        scheme, host, port = _origin(target)
        reason = f"HTTP {status}: it redirects to {scheme}://{host}:{port}, and no image is sent there unasked"
        raise RefusedError(Failure(reason, Kind.HOPELESS))

    def _without_token(self, text: str) -> str:
        """Hide the token, which servers repeat when they refuse it."""
        return text.replace(self._token, "***") if self._token else text


def read_answer(content: bytes) -> tuple[str, bool]:
    """Return the text of a chat completion, and whether it ended by itself.

    Raises:
        ValueError, RecursionError: it is something else.
    """
    output = json.loads(content)
    match output:
        case {"choices": [{"message": {**message}} as choice, *_]}:
            end, text = choice.get("finish_reason"), _text(message.get("content"))
            thought = message.get("reasoning_content") or message.get("reasoning")
            if not text and isinstance(thought, str) and thought:
                text = f"<think>{thought}"  # taken apart by the server, which found no end of it
            return text, isinstance(end, str) and end.casefold() in GOOD_ENDINGS
    raise ValueError(f"no text in {str(output)[:100]!r}")


def _text(content: Any) -> str:
    """Return a text, or those of its parts that are not thinking."""
    match content:
        case None:  # nothing but thinking
            return ""
        case str():
            return content
        case [*parts] if all(isinstance(part, dict) for part in parts):
            texts = [part["text"] for part in parts if part.get("type") in ("text", "output_text")]
            if all(isinstance(text, str) for text in texts):
                return "".join(texts)
    raise ValueError(f"no text in {str(content)[:100]!r}")


async def _read(response: httpx.Response) -> bytes:
    """Return the body, of at most so many bytes as an answer may have."""
    parts, size = [], 0
    try:
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES:,} bytes")
    except httpx.HTTPError:
        if response.status_code < 400:
            raise
    return b"".join(parts)


def _message(content: bytes) -> str:
    """Return what a server says about an error, in one of the forms that servers have; nothing of a web page."""
    text = content.decode(errors="replace").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.startswith("<") else text
    for _ in range(3):  # {"error": {"message": "..."}}, {"detail": [{"msg": "..."}]}
        if isinstance(said, list) and said:
            said = said[0]
        elif isinstance(said, dict):
            names = ("error", "message", "detail", "msg", "errors")
            said = next((said[name] for name in names if said.get(name)), None)
    return said if isinstance(said, str) else text


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _require_address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number
        is_whole = False
    if not is_whole:
        raise ValueError(f"`url` is {shown(url)}; expected an address such as http://localhost:8000. Correct it.")
    if parts.username or parts.password:
        raise ValueError(
            "`url` has a user or a password in it; expected a plain address. Give what is secret as the token."
        )
    return parts


def _is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its address or by the names that are reserved for that."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified
