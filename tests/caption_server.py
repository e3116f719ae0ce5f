"""A small real server of captions on loopback, which fails as servers do; `caption_server.py 0.05` runs one alone.

It answers with what `caption_of` says about picture and prompt, so that an answer to another question is noticed.
"""

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
BROKEN_JSON = {
    "no json": b"the captioner is warming up",
    "no text": b"\xff\xfe\x00broken",
    "no dictionary": b"[1, 2]",
    "no choices": b"{}",
    "empty choices": b'{"choices": []}',
    "no message": b'{"choices": [{"finish_reason": "stop"}]}',
    "odd message": b'{"choices": [{"message": "a", "finish_reason": "stop"}]}',
    "odd text": b'{"choices": [{"message": {"role": "assistant", "content": 3}, "finish_reason": "stop"}]}',
    "deep": b"[" * 100_000,
    "empty": b"",
}
BROKEN_CONNECTIONS = ("close", "reset", "cut", "not http", "hang", "drip")
FAULTS = ("500", "503", "429", "html", *BROKEN_CONNECTIONS, *BROKEN_JSON)


class Asked(NamedTuple):
    """One request."""

    moment: float
    body: Mapping[str, Any]
    token: str | None
    path: str

    @property
    def question(self) -> tuple[str, str]:
        """Picture, as a data URL, and prompt."""
        picture, prompt = self.body["messages"][0]["content"]
        return picture["image_url"]["url"], prompt["text"]


def caption_of(picture: str, prompt: str) -> str:
    digest = hashlib.sha256(f"{picture}\n{prompt}".encode()).digest()
    counts = [NUMBERS[byte % len(NUMBERS)] for byte in digest[:4]]
    return f"There are {counts[0]} red birds and {counts[1]} old boats, {counts[2]} trees and {counts[3]} clouds."


class CaptionServer(ThreadingHTTPServer):
    """Every question meets `faults` in turn, or those of its prompt, then is answered after `delay` seconds."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        faults: Sequence[str] | Mapping[str, Sequence[str]] = (),
        *,
        delay: float = 0.0,
        retry_after: str | None = "0",
        error: bytes = b'{"error": "overloaded"}',
        answers: Mapping[str, bytes] | None = None,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults = faults
        self.delay = delay
        self.retry_after = retry_after
        self.path = path
        self.headers = headers or {}  # of what is not an answer
        self.error = error
        self.answers = answers or {}  # by prompt, instead of the usual ones
        self.asked: list[Asked] = []
        self.most_at_once = self.at_once = 0
        self.times: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the game."""

    def note(self, asked: Asked) -> str:
        """The fault that this request meets; empty for an answer."""
        if asked.path != self.path:
            return "404"
        with self.lock:
            self.asked.append(asked)
            place = self.times[asked.question]
            self.times[asked.question] += 1
        faults = self.faults.get(asked.question[1], ()) if isinstance(self.faults, Mapping) else self.faults
        return faults[place] if place < len(faults) else ""

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self.lock:
                self.at_once -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CaptionServer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(time.monotonic(), body, self.headers["Authorization"], self.path)
        fault = self.server.note(asked)
        with self.server.counted():
            if fault:
                self.fail(fault, *asked.question)
            else:
                self.server.closing.wait(self.server.delay)
                usual = answer(caption_of(*asked.question))
                self.send(200, self.server.answers.get(asked.question[1], usual))

    def fail(self, fault: str, picture: str, prompt: str) -> None:
        right = answer(caption_of(picture, prompt))
        if fault.isdecimal():
            self.send(int(fault), self.server.error)
        elif fault in BROKEN_JSON:
            self.send(200, BROKEN_JSON[fault])
        elif fault == "html":
            self.send(200, b"<html><body>Bad gateway</body></html>", "text/html")
        elif fault == "cut":
            self.send(200, right[: len(right) // 2], length=len(right))
        elif fault == "not http":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        elif fault == "hang":
            self.server.closing.wait()
        elif fault == "drip":  # within any time-out of a single read
            self.send(200, b"", length=len(right))
            for place in range(len(right)):
                self.wfile.write(right[place : place + 1])
                if self.server.closing.wait(0.1):
                    break
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        # Where an answer is whole, the client asks its next question on the same connection.
        self.close_connection = fault in BROKEN_CONNECTIONS

    def send(self, status: int, body: bytes, kind: str = "application/json", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        after = self.server.retry_after
        if status in (429, 503) and after is not None:
            self.send_header("Retry-After", formatdate(time.time() + 2, usegmt=True) if after == "date" else after)
        for name, value in self.server.headers.items() if status != 200 else ():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def answer(text: str | None, end: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": end}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


@contextmanager
def serving(server: CaptionServer) -> Iterator[CaptionServer]:
    """In a thread of this process."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    alone = CaptionServer(delay=float(sys.argv[1]))
    sys.stdout.write(f"{alone.url}\n")
    sys.stdout.flush()
    alone.serve_forever()
