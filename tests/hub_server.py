"""A Hub on loopback: a real HTTP server that speaks the Hub's protocol to the unmodified clients.

It is a re-implementation from what the clients of `huggingface_hub`, `transformers` and `datasets` ask for: it tests
those clients and our calls of them, not the real service.

    with LoopbackHub() as hub:
        hub.environment(home)      # for a client's process: it has to be set before huggingface_hub is imported
        hub.break_at("upload", cut="middle", times=10)
        hub.repositories["model", "ada/clip"].at("main").files
        hub.requests               # what was asked: (stage, method, path)

Tokens: `TOKEN` is Ada's, `READ_TOKEN` hers without the right to write, `OTHER_TOKEN` Bob's.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

from hub_answers import ACCOUNTS, ROUTES, TOKEN, Account, Answer, Call, HubState, Route
from hub_storage import HubError

CUTS = ("before", "middle", "after")


@dataclass
class Fault:
    """`status` answers that and does nothing; `cut` ends the connection before, in the middle, or after the work."""

    status: int = 0
    message: str = ""
    cut: str = ""
    times: int = 1


@dataclass
class LoopbackHub(HubState):
    """The server; also a context manager."""

    requests: list[tuple[str, str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=partial(self.server.serve_forever, poll_interval=0.05), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a client's process needs to talk to this Hub and to touch nothing outside `home`."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_OFFLINE": "0", "TOKENIZERS_PARALLELISM": "false"}
        return settings | ({"HF_TOKEN": token} if token else {})

    def break_at(self, stage: str, *, status: int = 0, message: str = "", cut: str = "", times: int = 1) -> None:
        """Let the next `times` requests of a stage (a name in `ROUTES`) fail."""
        assert stage in {route.stage for route in ROUTES} and (cut in CUTS or status)
        self.faults.setdefault(stage, []).append(Fault(status, message, cut, times))

    def take_fault(self, stage: str) -> Fault:
        """The fault that is due, or one that does nothing."""
        waiting = self.faults.get(stage, [])
        if not waiting:
            return Fault()
        waiting[0].times -= 1
        return waiting[0] if waiting[0].times else waiting.pop(0)

    def stages(self) -> list[str]:
        """Which kinds of requests there were, in order."""
        return [stage for stage, _, _ in self.requests]


class _CutError(Exception):
    """The connection is to end here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: LoopbackHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the hub keeps its own log."""

    def _serve(self) -> None:
        address = urlsplit(self.path)
        matches = ((route, route.path.fullmatch(address.path)) for route in ROUTES if self.command in route.methods)
        route, match = next(((route, match) for route, match in matches if match), (None, None))
        with self.hub.lock:
            self.hub.requests.append((route.stage if route else "unknown", self.command, address.path))
            fault = self.hub.take_fault(route.stage) if route else Fault()
        try:
            body = self._read(is_cut=fault.cut == "middle")
            if fault.cut == "before":
                raise _CutError
            parts = {key: unquote(value) for key, value in match.groupdict().items() if value} if match else {}
            self._send(self._answer(route, fault, parts, parse_qs(address.query), body), fault)
        except (_CutError, ConnectionError):
            self.close_connection = True
            with suppress(OSError):  # it may be gone already
                self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(
        self, route: Route | None, fault: Fault, parts: dict[str, str], query: dict[str, list[str]], body: bytes
    ) -> Answer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if "range" in headers:
            self.hub.ranges.append(headers["range"])
        try:
            if route is None:
                raise HubError(404, "Sorry, we can't find the page you are looking for.")
            if fault.status:
                raise HubError(fault.status, fault.message or "broken by the test")
            with self.hub.lock:
                return route.answer(self.hub, Call(parts, query, headers, body, self._account()))
        except HubError as error:
            about = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            text = json.dumps({"error": error.message, **error.body}).encode()
            return Answer(text, error.status, (("Content-Type", "application/json"), *about.items()))

    def _account(self) -> Account | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in ACCOUNTS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return ACCOUNTS.get(token)

    def _read(self, *, is_cut: bool) -> bytes:
        """The request's body; of one that is to be cut, half."""
        body = b"".join(self._chunks(is_cut=is_cut))
        if is_cut and self.command in ("POST", "PUT"):
            raise _CutError
        return body

    def _chunks(self, *, is_cut: bool) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            yield self.rfile.read(length // 2 if is_cut else length)
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size // 2 if is_cut else size)
            if is_cut:
                return
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, answer: Answer, fault: Fault) -> None:
        if fault.cut == "after":
            raise _CutError
        self.send_response(answer.status)
        for name, value in (*answer.headers, ("Content-Length", str(len(answer.body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_cut = fault.cut == "middle"
        self.wfile.write(answer.body[: len(answer.body) // 2] if is_cut else answer.body)
        if is_cut:
            raise _CutError


for verb in ("GET", "HEAD", "POST", "PUT", "DELETE"):
    setattr(_Handler, f"do_{verb}", _Handler._serve)


def connect(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this process's client talk to the Hub: its settings are constants that it reads at every call.

    Between its retries it does not wait. Nothing else about it is changed.
    """
    settings = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings |= {"HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"}
    settings |= {"HF_TOKEN_PATH": str(folder / "no-token"), "HF_HUB_CACHE": str(folder / "hub-cache")}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def client_environment(hub: LoopbackHub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """The whole environment of a client's process."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return ours | hub.environment(home, token)


def run_client(
    hub: LoopbackHub, script: str, *arguments: str | Path, home: Path, token: str | None = TOKEN, **settings: str
) -> str:
    """What a client's script prints, run in a process of its own that talks to this Hub; it has to end well."""
    environment = {**client_environment(hub, home, token), **settings}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    home.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout
