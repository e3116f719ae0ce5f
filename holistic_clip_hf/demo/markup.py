# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""HTML of the page. Everything that comes from files, captions or people is escaped here, once.

Images stand in the page itself, so that nothing has to be served from a path.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from ..processing_holistic_clip import on_background
from ..search import Hit
from ..visualization import map_over_image
from ..visualization.maps import stretched
from ..visualization.result_grid import LABEL_COLOURS
from .showcase import Inspection, LabelledMap, Matching

THUMBNAIL, TILE, LARGE = 224, 200, 480  # pixels of the longer side
NEAR_ZERO = 0.005  # below, a share rounds to nothing


def picture(image: Image.Image, side: int) -> str:
    """Return an image as the value of `src`."""
    drawn = on_background(image).convert("RGB")
    drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    drawn.save(file, "WEBP", quality=82, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def message(text: str) -> str:
    """Return one sentence in place of results."""
    return f'<p class="hc-message">{escape(text)}</p>'


def legend(branches: Sequence[str]) -> str:
    """Return the colour of each branch."""
    spots = [f'<span style="--hue:{colour_of(name, branches)}">{_plain(name)}</span>' for name in branches]
    return f'<div class="hc-legend">{"".join(spots)}</div>'


def colour_of(branch: str, branches: Sequence[str]) -> str:
    """Return the colour of a known branch, or grey for anything else, such as the fused vector."""
    return LABEL_COLOURS[branches.index(branch) % len(LABEL_COLOURS)] if branch in branches else "#85888f"


def results(hits: Sequence[Hit], thumbnails: Mapping[str, str], branches: Sequence[str]) -> str:
    """Return a grid of images that were found, best first, each a button with what its branches added to its score."""
    cards = []
    for place, hit in enumerate(hits, start=1):
        name = escape(hit.image_id, quote=True)
        cards.append(
            f'<button class="hc-card" data-image-id="{name}" aria-label="{place}: {name}">'
            f'<img src="{thumbnails[hit.image_id]}" alt="" draggable="false">'
            f'<span class="hc-name" title="{name}"><b>{place}</b>{escape(_last(hit.image_id))}</span>'
            f"{_strip(shares(hit), branches)}"
            f"{_score(hit)}</button>"
        )
    return f'{legend(branches)}<div class="hc-grid">{"".join(cards)}</div>'


def shares(hit: Hit) -> dict[str, float]:
    """Show what each branch added to a score, over all terms. The shares add up to it."""
    added: dict[str, float] = {}
    for part in hit.parts:
        for branch, score in part.by_branch.items():
            added[branch] = added.get(branch, 0.0) + score
    return added


def detail(hit: Hit | None, title: str, image: Image.Image, found: Inspection, text: str) -> str:
    """Return one image from all sides, in a panel above the page."""
    branches = found.matching.branches if found.matching else [each.name for each in found.attention]
    blocks = [_reasons(shares(hit), branches)] if hit is not None else []
    blocks += [
        _tiles("Where each branch looks", "Attention of the branch's token or probe.", found.seen, found.attention),
        _tiles(f"What speaks for “{text}”", "Patches that raise the branch's score.", found.seen, found.relevance),
        _tiles("Words and patches", "Patches that each word agrees with most.", found.seen, found.words),
        _matrix(found.matching) if found.matching else "",
    ]
    return (
        '<div class="hc-overlay" role="dialog" aria-modal="true" tabindex="-1"><div class="hc-panel">'
        '<button class="hc-close" aria-label="Close">×</button>'
        f'<div class="hc-head"><img src="{picture(image, LARGE)}" alt=""><div><h3>{escape(title)}</h3>'
        f"{blocks[0] if hit is not None else ''}</div></div>"
        f"{''.join(blocks[1:] if hit is not None else blocks)}</div></div>"
    )


def nearest(found: Mapping[str, Sequence[tuple[str, float]]], branches: Sequence[str]) -> str:
    """Show for each branch the captions that agree with it most."""
    columns = []
    for branch, captions in found.items():
        lines = "".join(f"<li><span>{escape(text)}</span><b>{score:.2f}</b></li>" for text, score in captions)
        columns.append(
            f'<div class="hc-branch" style="--hue:{colour_of(branch, branches)}"><h4>{_plain(branch)}</h4>'
            f"<ol>{lines}</ol></div>"
        )
    return f'<div class="hc-branches">{"".join(columns)}</div>'


def tiles_of(image: Image.Image, title: str, explained: str, maps: Sequence[LabelledMap]) -> str:
    """Return maps of an image, side by side."""
    return _tiles(title, explained, image, maps)


def _tiles(title: str, explained: str, image: Image.Image, maps: Sequence[LabelledMap]) -> str:
    if not maps:
        return ""
    square = on_background(image).convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
    figures = []
    for each in maps:
        drawn = map_over_image(square, stretched(each.values.flatten()).reshape(each.values.shape))
        figures.append(
            f'<figure><img src="{picture(drawn, TILE)}" alt=""><figcaption>{_plain(each.name)}'
            f"<small>{escape(each.note)}</small></figcaption></figure>"
        )
    head = f"<h4>{escape(title)}</h4><p>{escape(explained)}</p>"
    return f'<section>{head}<div class="hc-tiles">{"".join(figures)}</div></section>'


def _score(hit: Hit) -> str:
    """Show a score, or nothing if nothing was asked."""
    return f'<span class="hc-score">{hit.score:.2f}</span>' if hit.parts else ""


def _strip(added: Mapping[str, float], branches: Sequence[str]) -> str:
    """Return one line of colours, as wide as each branch counts; what counts against is hatched."""
    total = sum(abs(score) for score in added.values())
    if total < NEAR_ZERO:
        return ""
    parts = [
        f'<i class="{"hc-against" if score < 0 else ""}" style="--hue:{colour_of(name, branches)};'
        f'flex-grow:{abs(score) / total:.3f}" title="{_plain(name)} {score:+.2f}"></i>'
        for name, score in added.items()
    ]
    return f'<span class="hc-strip">{"".join(parts)}</span>'


def _reasons(added: Mapping[str, float], branches: Sequence[str]) -> str:
    most = max([abs(score) for score in added.values()] or [0.0]) or 1.0
    lines = [
        f'<li style="--hue:{colour_of(name, branches)}"><span>{_plain(name)}</span>'
        f'<i class="{"hc-against" if score < 0 else ""}" style="width:{100 * abs(score) / most:.0f}%"></i>'
        f"<b>{score:+.2f}</b></li>"
        for name, score in added.items()
    ]
    return f'<p>What each branch adds to its score</p><ul class="hc-reasons">{"".join(lines)}</ul>'


def _matrix(found: Matching) -> str:
    """Draw captions down, branches across: captions are long, and phones are narrow."""
    low, high = found.similarity.min().item(), found.similarity.max().item()
    head = "".join(f"<th>{_plain(name)}</th>" for name in found.branches)
    rows = []
    for column, (perspective, text) in enumerate(found.captions):
        scores = found.similarity[:, column].tolist()
        cells = "".join(
            f'<td class="{"hc-best" if score == max(scores) else ""}" '
            f'style="--share:{100 * (score - low) / max(high - low, 1e-6):.0f}%">{score:.2f}</td>'
            for score in scores
        )
        rows.append(f"<tr><th><small>{_plain(perspective)}</small>{escape(text)}</th>{cells}</tr>")
    return (
        "<section><h4>Its captions and its branches</h4><p>How much each branch agrees with each caption; the best of "
        f'each caption is framed.</p><div class="hc-scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div></section>"
    )


def _plain(name: str) -> str:
    return escape(name.replace("_", " "), quote=True)


def _last(image_id: str) -> str:
    return image_id.rsplit("/", 1)[-1]
