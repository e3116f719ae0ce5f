# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""JSON interface of the page's server: vectors as clients of OpenAI's interface ask for them, and search.

It answers under the guards of the page. A request holds its body in memory, so that few are taken at a time.
"""

import base64
import binascii
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..search import FUSED, Hit
from ..search.query import MOST_LETTERS
from ..storage import parse_json, require_keys, shown
from .markup import MOST_SHOWN
from .showcase import SHOWN, Showcase
from .uploads import read_upload

logger = logging.getLogger(__name__)

EMBEDDINGS, EMBED, MODELS, SEARCH = "/v1/embeddings", "/embed", "/v1/models", "/search"
JSON_PATHS = (EMBEDDINGS, EMBED, MODELS, SEARCH)
MOST_INPUTS = 256  # texts and images of a request
MOST_IMAGES = 16  # of them images
MOST_AT_WORK = 16  # requests whose body is held
HEAVIEST = 1e6  # weight of a perspective; those of the sliders are up to 2
RETRY_SECONDS = 1
BETWEEN = ":"  # a model's name and a branch
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]{0,20}://\S*\s*", re.IGNORECASE)
Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


class UnknownModelError(ValueError):
    """Name of a model or branch that is not served."""


def error_body(status: int, sentence: str) -> dict[str, Any]:
    """Return an error as clients of OpenAI's interface read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": None, "code": None}}


def json_routes(showcase: Showcase) -> list[Route]:
    """Return the routes of a showcase's interface, to be served beside the page."""
    interface = Interface(showcase)
    embeddings = JSONEndpoint(interface.embeddings, "POST")
    return [
        Route(EMBEDDINGS, embeddings),
        Route(EMBED, embeddings),
        Route(MODELS, JSONEndpoint(interface.models, "GET")),
        Route(SEARCH, JSONEndpoint(interface.search, "POST")),
    ]


class JSONEndpoint:
    """ASGI application of one path: reads a JSON object, answers with one, and says what is wrong in one sentence.

    Args:
        answer: Function from the request's object to the answer's; its ValueError is the visitor's mistake.
        method: HTTP method that it answers to.
    """

    num_at_work = 0  # of all paths; it changes in the server's own thread alone

    def __init__(self, answer: Answer, method: str) -> None:
        self.answer, self.method = answer, method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(Request(scope, receive))
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if request.method != self.method:
            sentence = f"{request.url.path} is asked by {request.method}; expected {self.method}."
            return _error(405, sentence, Allow=self.method)
        if JSONEndpoint.num_at_work >= MOST_AT_WORK:
            return _error(429, "Too many requests are at work. Ask again.", **{"Retry-After": str(RETRY_SECONDS)})
        JSONEndpoint.num_at_work += 1
        try:
            body = await request.body() if self.method == "POST" else b"{}"
            return await run_in_threadpool(self._answered, body)
        finally:
            JSONEndpoint.num_at_work -= 1

    def _answered(self, body: bytes) -> Response:
        try:
            given = parse_json(body)
        except (ValueError, RecursionError) as error:
            return _error(400, f"The request is not JSON ({error}); expected an object. Correct it.")
        try:
            return JSONResponse(self.answer(given))
        except UnknownModelError as error:
            return _error(404, str(error))
        except ValueError as error:
            return _error(400, str(error))
        except Exception:
            logger.exception("A request of the JSON interface failed.")
            return _error(500, "The server failed. Look into its log.")


def _error(status: int, sentence: str, **headers: str) -> Response:
    return JSONResponse(error_body(status, sentence), status, headers)


class Interface:
    """Requests of programs about a showcase, each answered with an object."""

    def __init__(self, showcase: Showcase) -> None:
        self.showcase = showcase

    def models(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """List the checkpoint, whose vectors are fused, and each of its branches as a model of its own."""
        name = self.showcase.name
        names = [name, *(f"{name}{BETWEEN}{branch}" for branch in self.showcase.branches)]
        data = [{"id": each, "object": "model", "created": 0, "owned_by": name} for each in names]
        return {"object": "list", "data": data}

    def embeddings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Embed texts, and images as data URLs, in the order in which they came.

        Raises:
            UnknownModelError: no such model or branch.
            ValueError: fields that are unknown or of another form, too many inputs, or one that cannot be embedded.
        """
        valid = ("model", "input", "encoding_format", "dimensions", "user")
        given = require_keys("The request", given, valid, ["input"])
        branch = self._branch_of(given.get("model", ""))
        form = given.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise ValueError(
                f"`encoding_format` is {shown(form)}; expected 'float' or 'base64'. Leave it out for floats."
            )
        inputs = _checked_inputs(given["input"])
        found = self.showcase.embed(_decoded(inputs), branch)
        width = found.vectors.shape[1]
        if given.get("dimensions") not in (None, width):
            raise ValueError(f"`dimensions` is {shown(given['dimensions'])}; expected {width}, all that there are.")
        rows = found.vectors.numpy().astype("<f4")
        told = [row.tolist() if form == "float" else base64.b64encode(row.tobytes()).decode() for row in rows]
        data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(told)]
        usage = {"prompt_tokens": found.num_tokens, "total_tokens": found.num_tokens}
        model = self.showcase.name if branch == FUSED else f"{self.showcase.name}{BETWEEN}{branch}"
        return {"object": "list", "data": data, "model": model, "usage": usage, "num_truncated": found.num_truncated}

    def search(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Find images by a text in the language of queries, or by an image as a data URL.

        Raises:
            ValueError: fields that are unknown or of another form, or a query that cannot be asked.
        """
        given = require_keys("The request", given, ("query", "weights", "k"), ["query"])
        query, weights, k = given["query"], given.get("weights"), given.get("k", SHOWN)
        if not isinstance(query, str):
            raise ValueError(f"`query` is of the type {type(query).__name__}; expected a text, or a data URL.")
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST_SHOWN:
            raise ValueError(f"`k` is {shown(k)}; expected 1 to {MOST_SHOWN}.")
        if weights is not None and not _is_weights(weights):
            raise ValueError(
                f"`weights` is {shown(weights)}; expected an object of numbers up to {HEAVIEST:g}, such as "
                '{"fused": 1}. Correct it.'
            )
        (asked,) = _decoded([query])
        images = [self._told(hit) for hit in self.showcase.search(asked, weights, k=k)]
        return {"images": images, **({"notice": self.showcase.notice} if self.showcase.notice else {})}

    def _told(self, hit: Hit) -> dict[str, Any]:
        captions = self.showcase.captions.get(hit.image_id, ())
        parts = [
            {"term": str(each.term), "score": each.score, "by_branch": dict(each.by_branch)} for each in hit.parts
        ]
        told = [{"perspective": perspective, "text": text} for perspective, text in captions]
        return {"id": hit.image_id, "score": hit.score, "parts": parts, "captions": told}

    def _branch_of(self, model: Any) -> str:
        """Return the branch that is asked for by the name of a model, or `FUSED`."""
        name = self.showcase.name
        known = {name: FUSED, "": FUSED, **{f"{name}{BETWEEN}{each}": each for each in self.showcase.branches}}
        if not isinstance(model, str) or model not in known:
            listed = ", ".join(repr(each) for each in known if each)
            raise UnknownModelError(f"`model` is {shown(model)}; expected one of {listed}.")
        return known[model]


def _is_weights(weights: Any) -> bool:
    numbers = weights.values() if isinstance(weights, dict) else [None]
    return all(
        isinstance(each, int | float) and not isinstance(each, bool) and abs(each) <= HEAVIEST for each in numbers
    )


def _checked_inputs(given: Any) -> list[str]:
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise ValueError("`input` is not a list of strings; expected texts, or images as data URLs. Send no tokens.")
    if not 1 <= len(inputs) <= MOST_INPUTS:
        raise ValueError(f"`input` has {len(inputs):,} entries; expected 1 to {MOST_INPUTS}. Send several requests.")
    num_images = sum(map(_is_image, inputs))
    if num_images > MOST_IMAGES:
        raise ValueError(f"`input` has {num_images} images; expected up to {MOST_IMAGES}. Send several requests.")
    return inputs


def _is_image(text: str) -> bool:
    return text.startswith("data:image/")


def _decoded(inputs: list[str]) -> Iterator[str | Image.Image]:
    """Yield texts as they are, and images decoded one at a time."""
    for position, each in enumerate(inputs):
        if _is_image(each):
            yield _image_of(each, position)
        elif _ADDRESS.fullmatch(each[:MOST_LETTERS]):
            raise ValueError(f"Input {position} is an address, and none is fetched; expected a text or a data URL.")
        elif len(each) > MOST_LETTERS:
            raise ValueError(
                f"Input {position} has {len(each):,} letters; expected up to {MOST_LETTERS:,}. Shorten it."
            )
        else:
            yield each


def _image_of(url: str, position: int) -> Image.Image:
    head, _, payload = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("A data URL needs `;base64,` before the bytes of the image.")
        return read_upload(base64.b64decode(payload, validate=True))
    except binascii.Error as error:
        raise ValueError(
            f"Input {position} is not base64 ({error}); expected the bytes of an image. Encode it."
        ) from error
    except ValueError as error:
        raise ValueError(f"Input {position} cannot be read. {error}") from error
