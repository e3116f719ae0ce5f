# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""An artist's drawings: Iconify sets of SVG bodies, drawn as RGBA PNG."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import resvg_py
from PIL import Image

from holistic_clip_hf.images.decoding import open_image

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


_TRANSFORMS = ("rotate", "hFlip", "vFlip")


_FAINT = 8  # of 255: alpha at and below it is the haze of a blurred edge


@dataclass(frozen=True)
class IconSet:
    """One artist's set: `icons.json`, its licence, and the character map where it has one."""

    icons: Mapping[str, Any]
    license: str
    characters: Mapping[str, str]

    @classmethod
    def read(cls, members: Mapping[str, bytes]) -> "IconSet":
        """Read a set from `icons.json`, `info.json` and, for some sets, `chars.json`."""
        license_facts = json.loads(members["info.json"])["license"]
        characters = json.loads(members.get("chars.json", b"{}"))
        return cls(json.loads(members["icons.json"]), license_facts["spdx"], characters)

    def names(self) -> dict[str, str]:
        """Return every name to its drawing: the drawings' own names, then aliases that are not rotated or flipped."""
        own = {name: name for name in self.icons["icons"]}
        aliases = {name: self._resolve(name) for name in self.icons.get("aliases", {})}
        return own | {alias: drawing for alias, drawing in aliases.items() if drawing is not None}

    def svg(self, name: str) -> str:
        """Return the drawing as an SVG document; `ValueError` for a name that is unknown or a transformed alias."""
        drawing = self._resolve(name)
        if drawing is None:
            raise ValueError(f"The name is {name!r}; expected a drawing, or an alias without rotation or flip.")
        icon = self.icons["icons"][drawing]
        left, top = (icon.get(key, self.icons.get(key, 0)) for key in ("left", "top"))
        width, height = (icon.get(key, self.icons.get(key, 16)) for key in ("width", "height"))
        return (
            f'<svg {_NAMESPACES} viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
            f"{icon['body']}</svg>"
        )

    def _resolve(self, name: str) -> str | None:
        seen = set()
        while name not in self.icons["icons"]:
            alias = self.icons.get("aliases", {}).get(name)
            if alias is None or name in seen or any(alias.get(transform) for transform in _TRANSFORMS):
                return None
            seen.add(name)
            name = alias["parent"]
        return name


def draw(svg: str, size: int) -> bytes:
    """Return the SVG as a transparent PNG of `size` x `size` pixels; `ValueError` when it does not draw or draws
    nothing.

    What is drawn fills the picture: artists leave margins of their own, which tell nothing of the concept.
    """
    # System fonts are left out: with them the corpus would differ from machine to machine.
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    drawing = open_image(png).convert("RGBA")
    visible = drawing.getchannel("A").point(lambda alpha: 255 * (alpha > _FAINT))
    box = visible.getbbox()
    if box is None:
        raise ValueError("draws nothing")
    return _fill_square(drawing.crop(box), size)


def _fill_square(drawing: Image.Image, size: int) -> bytes:
    side = max(drawing.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    buffer = io.BytesIO()
    square.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
