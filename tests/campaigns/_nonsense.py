"""Nonsense that files hold: JSON with fields changed, removed or of another type, and bytes that are not text."""

import json
import math
import random
from collections.abc import Iterator
from typing import Any

Draw = random.Random
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    1e308,
    math.nan,
    math.inf,
    "",
    " ",
    "x",
    "../../beside/letter.txt",
    "/etc/passwd",
    "\x00",
    "\ud800",
    "é" * 300,
    "http://127.0.0.1:9/x",
    [],
    [[]],
    [1, "a", None],
    {},
    {"a": {"b": []}},
    list(range(1000)),
)


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value in a JSON document, the outermost first."""
    yield above
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*above, key))


def change(content: Any, draw: Draw) -> tuple[Any, str]:
    """Return a JSON document with one value changed, removed, renamed or doubled, and what was done."""
    way = draw.choice(list(places(content)))
    if not way:
        value = draw.choice(VALUES)
        return value, f"all is {str(value)[:40]!r}"
    content = json.loads(json.dumps(content))
    holder = content
    for key in way[:-1]:
        holder = holder[key]
    last, told = way[-1], ".".join(map(str, way))
    what = draw.choice(["value", "value", "value", "number", "remove", "rename"])
    if what == "number" and isinstance(holder[last], int | float):
        holder[last] = draw.choice([holder[last] + 1, holder[last] - 1, -holder[last], holder[last] * 1000, 0])
        return content, f"{told} is {holder[last]}"
    if what == "remove":
        del holder[last]
        return content, f"{told} is missing"
    if what == "rename" and isinstance(holder, dict):
        holder[draw.choice(["", "extra", f"{last} "])] = holder.pop(last)
        return content, f"{told} is renamed"
    holder[last] = draw.choice(VALUES)
    return content, f"{told} is {str(holder[last])[:40]!r}"


def spoil(text: bytes, draw: Draw) -> tuple[bytes, str]:
    """Return bytes that were JSON or other text, damaged, and what was done."""
    kind = draw.choice(["cut", "flip", "empty", "latin", "mark", "deep", "long", "junk", "nul", "twice", "sixteen"])
    if kind == "cut":
        text = text[: draw.randrange(len(text) or 1)]
    elif kind == "flip":
        text = flip(text, draw)
    elif kind == "junk":
        text += b"}\n]"
    elif kind == "nul":
        text = text.replace(b'"', b'"\x00', 1)
    elif kind == "twice":
        text += text
    made = {
        "empty": b"",
        "latin": b'{"name": "caf\xe9"}',
        "mark": b"\xef\xbb\xbf" + text,
        "deep": b"[" * 200_000,
        "long": b'"' + b"x" * 3_000_000 + b'"',
        "sixteen": text.decode(errors="replace").encode("utf-16"),
    }
    return made.get(kind, text), kind


def nonsense(text: bytes, draw: Draw) -> tuple[bytes, str]:
    """Return the text of a JSON document with a value changed, or not JSON any more, and what was done."""
    if draw.random() < 0.25:
        return spoil(text, draw)
    content, told = change(json.loads(text), draw)
    return json.dumps(content).encode("utf-8", "surrogatepass"), told


def flip(data: bytes, draw: Draw, least: int = 1, most: int = 20, within: int | None = None) -> bytes:
    """Return bytes with some bits flipped, of the first `within` bytes only if that is given."""
    spoiled, size = bytearray(data), min(len(data), within or len(data))
    for _ in range(draw.randint(least, most) if size else 0):
        spoiled[draw.randrange(size)] ^= 1 << draw.randrange(8)
    return bytes(spoiled)
