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
from ..search import FUSED, Answer, Hit, Term
from ..visualization import map_over_image
from ..visualization.maps import stretched
from ..visualization.result_grid import LABEL_COLOURS
from .editing import LONGEST_EDITED, digest_of
from .explanation import NO_WORDS, SHARED_ATTENTION, Inspection, LabelledMap, Matching, TermMaps

THUMBNAIL, TILE, LARGE = 224, 200, 480  # pixels of the longer side
MOST_SHOWN = 240  # images on the page
NEAR_ZERO = 0.005  # below, a share rounds to nothing
LONGEST_TITLE = 80  # letters of a term in a heading
AGAINST = "not wanted"


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


def problem(text: str) -> str:
    """Return what went wrong, so that it is seen and read out as that."""
    return f'<p class="hc-error" role="alert">{escape(text)}</p>'


def legend(branches: Sequence[str]) -> str:
    """Return the colour of each branch."""
    spots = [f'<span style="--hue:{colour_of(name, branches)}">{_plain(name)}</span>' for name in branches]
    return f'<div class="hc-legend">{"".join(spots)}</div>'


def colour_of(branch: str, branches: Sequence[str]) -> str:
    """Return the colour of a known branch, or grey for anything else, such as the fused vector."""
    return LABEL_COLOURS[branches.index(branch) % len(LABEL_COLOURS)] if branch in branches else "#85888f"


def examples(queries: Sequence[str]) -> str:
    """Return queries to begin with, each a button."""
    if not queries:
        return ""
    buttons = [f'<button data-query="{escape(each, quote=True)}">{escape(each)}</button>' for each in queries]
    return f'<div class="hc-examples"><span>For example</span>{"".join(buttons)}</div>'


def results(
    answer: Answer,
    thumbnails: Mapping[str, str],
    branches: Sequence[str],
    *,
    wishes: Sequence[Term],
    num_images: int,
    alike: Mapping[str, Sequence[Hit]] | None = None,
    notice: str = "",
) -> str:
    """Return a grid of images that were found, best first, each a button with what its branches added to its score.

    Args:
        answer: Images that were found, and whether any seems to fit.
        thumbnails: Value of `src` for each of them, by image id.
        branches: Names of the branches.
        wishes: Terms of the query; none if nothing was asked.
        num_images: Number of images that could have been found.
        alike: Near-duplicates among them, by the id of the best, below which they unfold.
        notice: Sentence to be read before the results.
    """
    hits = answer.hits
    cards = {
        hit.image_id: _card(hit, place, thumbnails[hit.image_id], branches) for place, hit in enumerate(hits, start=1)
    }
    for best, behind in (alike or {}).items():
        if behind:
            told = f"<summary>and {len(behind):,} alike</summary>{''.join(cards.pop(hit.image_id) for hit in behind)}"
            cards[best] = f'<div class="hc-fold">{cards[best]}<details class="hc-alike">{told}</details></div>'
    is_taken_over = bool(wishes) and all(wish.perspective != FUSED for wish in wishes)
    above = f'<p class="hc-said" role="status">{escape(notice)}</p>' if notice else ""
    said = f'<p class="hc-said">{escape(_sliders_said(wishes))}</p>' if _sliders_said(wishes) else ""
    nothing = _nothing_found(answer) if answer.found is False else ""
    return (
        f'<div data-sliders="{"off" if is_taken_over else "on"}">{above}{nothing}{said}{legend(branches)}'
        f"{_numbers(hits, wishes)}"
        f'<div class="hc-grid">{"".join(cards.values())}</div>{_more(len(hits), num_images)}</div>'
    )


def _card(hit: Hit, place: int, thumbnail: str, branches: Sequence[str]) -> str:
    name = escape(hit.image_id, quote=True)
    return (
        f'<button class="hc-card" data-image-id="{name}" aria-label="{place}: {name}">'
        f'<img src="{thumbnail}" alt="" draggable="false">'
        f'<span class="hc-name" title="{name}"><b>{place}</b>{escape(_last(hit.image_id))}</span>'
        f"{_strip(shares(hit), branches)}"
        f"{_score(hit)}</button>"
    )


def _nothing_found(answer: Answer) -> str:
    """Say that no image seems to fit."""
    told = (
        f"Nothing found: even the best image fits with a probability of {answer.best:.1%} only. These are the nearest."
    )
    return f'<p class="hc-nothing" role="status">{escape(told)}</p>'


def _sliders_said(wishes: Sequence[Term]) -> str:
    """Say which terms the sliders hold for, where some name their perspective themselves."""
    named = [wish for wish in wishes if wish.perspective != FUSED]
    if not named:
        return ""
    names = " and ".join(dict.fromkeys(wish.perspective.replace("_", " ") for wish in named))
    if len(named) == len(wishes):
        return f"The words say which perspective counts ({names}), so the sliders have no effect."
    left = " and ".join(f"“{_title(wish)}”" for wish in wishes if wish.perspective == FUSED)
    return f"The sliders hold for {left} alone: the rest of the query names its perspective ({names})."


def _numbers(hits: Sequence[Hit], wishes: Sequence[Term]) -> str:
    """Say how the scores are to be read, if there are any."""
    if not hits or not hits[0].parts:
        return ""
    reach = sum(abs(part.term.weight) for part in hits[0].parts)
    is_example = len(wishes) == 1 and wishes[0].image is not None
    terms = "the image that you gave" if is_example else "each term of the query"
    told = (
        f"The number on an image is its score, the cosine similarity between its vectors and {terms}. Each term "
        f"counts by its weight. What is not wanted is subtracted from images that show more of it than most. This "
        f"query can reach from {-reach:.3g} to {reach:.3g}. Compare scores within one query only, since what is "
        f"unrelated may lie well above 0. The strip below an image shows what each branch added to its score; hatched "
        f"parts lower it."
    )
    if hits[0].probability is not None:
        told += (
            " The percentage is the probability that the image fits the query, as fitted on a validation split. It "
            "depends on the number of images."
        )
    if any(wish.image is not None for wish in wishes):
        told += " Queries with an image have no probabilities: the nearest are shown, whether any fits or not."
    return f'<details class="hc-how"><summary>What the numbers mean</summary><p>{escape(told)}</p></details>'


def _more(num_shown: int, num_images: int) -> str:
    """Say how many images are not shown, and give the button that shows more, up to the most of a page."""
    if num_shown >= num_images or not num_shown:
        return ""
    told = f"{num_shown:,} of {num_images:,} images."
    if num_shown >= MOST_SHOWN:
        return f'<div class="hc-more"><span>{told} Ask more precisely to see others.</span></div>'
    return f'<div class="hc-more"><span>{told}</span><button data-shown="{num_shown}">Show more</button></div>'


def shares(hit: Hit) -> dict[str, float]:
    """Show what each branch added to a score, over all terms. The shares add up to it."""
    added: dict[str, float] = {}
    for part in hit.parts:
        for branch, score in part.by_branch.items():
            added[branch] = added.get(branch, 0.0) + score
    return added


def detail(image_id: str, image: Image.Image, found: Inspection, *, hit: Hit | None, told: str, editor: str) -> str:
    """Return one image from all sides, in a panel above the page.

    Args:
        image_id: Id of the image.
        image: Image itself.
        found: Maps and matching of the image.
        hit: Image as an answer to the query, if one was asked.
        told: HTML of what there is to say first, such as an error.
        editor: HTML of the form in which its captions are corrected, or nothing.
    """
    branches = found.matching.branches if found.matching else [each.name for each in found.attention]
    reasons = _term_reasons(hit) + _reasons(shares(hit), branches) if hit is not None else ""
    return (
        '<div class="hc-overlay" role="dialog" aria-modal="true" tabindex="-1"><div class="hc-panel">'
        '<button class="hc-close" aria-label="Close">×</button>'
        f'<div class="hc-head"><img src="{picture(image, LARGE)}" alt=""><div><h3>{escape(image_id)}</h3>'
        f"{told}{reasons}</div></div>{explained(found)}"
        f"{_matrix(found.matching) if found.matching else ''}{editor}</div></div>"
    )


def explained(found: Inspection) -> str:
    """Return the maps of an image: where branches look, what speaks for each term, what words agree with."""
    blocks = [
        _tiles("Where each branch looks", "Attention of the branch's token or probe.", found.seen, found.attention)
        or _section("Where each branch looks", SHARED_ATTENTION)
    ]
    blocks += [_term_tiles(found.seen, each) for each in found.terms]
    if found.num_terms > len(found.terms):
        rest = f"{found.num_terms - len(found.terms)} more terms count for the score and are not drawn."
        blocks.append(_section("Further terms", rest))
    if any(each.asked.term.text is not None for each in found.terms):
        more = f" The first {len(found.words)} of {found.num_words}." if found.num_words > len(found.words) else ""
        told = f"Patches that each word of the query agrees with most.{more}"
        blocks.append(
            _tiles("Words and patches", told, found.seen, found.words) or _section("Words and patches", NO_WORDS)
        )
    return "".join(blocks)


def _term_tiles(image: Image.Image, found: TermMaps) -> str:
    term = found.asked.term
    name = "the image that you gave" if term.text is None else f"“{_title(term)}”"
    asked = "" if term.perspective == FUSED else f" Asked of {term.perspective.replace('_', ' ')} alone."
    if not found.maps:
        return _section(f"What speaks for {name}", "The sliders leave this term to no branch.")
    if found.asked.is_wanted:
        return _tiles(f"What speaks for {name}", f"Patches that raise the branch's score.{asked}", image, found.maps)
    told = f"Patches that agree with what is not wanted, and so lower the score.{asked}"
    return _tiles(f"What speaks against: {name} is not wanted", told, image, found.maps, is_against=True)


def _title(term: Term) -> str:
    words = " ".join((term.text or "the image that you gave").split())
    return words if len(words) <= LONGEST_TITLE else f"{words[:LONGEST_TITLE].rstrip()}…"


def _term_reasons(hit: Hit) -> str:
    """Show what each term added, if there are several."""
    by_term: dict[tuple[str, str, bool], float] = {}
    for part in hit.parts:
        key = (_title(part.term), part.term.perspective, part.term.weight < 0)
        by_term[key] = by_term.get(key, 0.0) + part.score
    if len(by_term) < 2:
        return ""
    lines = []
    for (name, perspective, is_against), score in by_term.items():
        asked = "" if perspective == FUSED else f"{perspective.replace('_', ' ')}: "
        mark = f" <small>{AGAINST}</small>" if is_against else ""
        lines.append(f"<li><span>{escape(asked + name)}{mark}</span><b>{score:+.2f}</b></li>")
    return f'<p>What each term adds to its score</p><ul class="hc-terms">{"".join(lines)}</ul>'


def editor(
    image_id: str, captions: Sequence[tuple[str, str]], perspectives: Sequence[str], *, seen: str, told: str = ""
) -> str:
    """Return the form in which the captions of an image are corrected.

    Args:
        image_id: Id of the image.
        captions: Perspective and text of each.
        perspectives: Perspectives that a caption may have; those without one get an empty field.
        seen: `editing.digest_of` the captions that are saved.
        told: HTML of what became of the last wish to save.
    """
    fields = [*captions, *((name, "") for name in perspectives if name not in {each for each, _ in captions})]
    is_saved = digest_of(captions) == seen
    rows = [
        f"<label><span>{_plain(name)}</span>"
        f'<textarea data-perspective="{escape(name, quote=True)}" rows="2" maxlength="{LONGEST_EDITED}">'
        f"{escape(text)}</textarea></label>"
        for name, text in fields
    ]
    hint = "An empty field is no caption. Saved captions are shown and compared from now on."
    return (
        f'<section class="hc-editor" data-image-id="{escape(image_id, quote=True)}" data-seen="{escape(seen, True)}"'
        f"{'' if is_saved else ' data-unsaved'}><h4>Correct its captions</h4><p>{hint}</p>{''.join(rows)}"
        f'<div class="hc-save"><button data-save>Save captions</button>{told}</div></section>'
    )


def saved(text: str) -> str:
    """Return that something was done."""
    return f'<span class="hc-saved" role="status">{escape(text)}</span>'


def nearest(found: Mapping[str, Sequence[tuple[str, float]]], branches: Sequence[str]) -> str:
    """Show for each branch the captions that agree with it most."""
    columns = []
    for branch, captions in found.items():
        lines = "".join(f"<li><span>{escape(text)}</span><b>{score:.2f}</b></li>" for text, score in captions)
        columns.append(
            f'<div class="hc-branch" style="--hue:{colour_of(branch, branches)}"><h4>{_plain(branch)}</h4>'
            f"<ol>{lines}</ol></div>"
        )
    told = "Captions that each branch agrees with most, with their cosine similarity (1 at most)."
    return f'<p class="hc-hint">{told}</p><div class="hc-branches">{"".join(columns)}</div>' if columns else ""


def _section(title: str, told: str, content: str = "") -> str:
    return f"<section><h4>{escape(title)}</h4><p>{escape(told)}</p>{content}</section>"


def _tiles(title: str, told: str, image: Image.Image, maps: Sequence[LabelledMap], *, is_against: bool = False) -> str:
    """Return maps of an image side by side; `is_against` if the heading says so of all of them."""
    if not maps:
        return ""
    square = on_background(image).convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
    figures = []
    for each in maps:
        drawn = map_over_image(square, stretched(each.values.flatten()).reshape(each.values.shape))
        mark = "" if each.is_wanted or is_against else f" · {AGAINST}"
        blank = f'<em class="hc-blank">{escape(each.blank)}</em>' if each.blank else ""
        figures.append(
            f'<figure><img src="{picture(drawn, TILE)}" alt=""><figcaption>{_plain(each.name)}'
            f"<small>{escape(each.note + mark)}</small>{blank}</figcaption></figure>"
        )
    return _section(title, told, f'<div class="hc-tiles">{"".join(figures)}</div>')


def _score(hit: Hit) -> str:
    """Show a score and, if it is known, a probability, or nothing if nothing was asked."""
    likely = "" if hit.probability is None else f" · {hit.probability:.0%}"
    return f'<span class="hc-score">{hit.score:.2f}{likely}</span>' if hit.parts else ""


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
