# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The page, built of gradio: what it shows, and what happens when a visitor asks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import gradio
from PIL import Image

from ..search import FUSED, Answer, Folder, Hit, SearchIndex, Term
from ..search.last_used import LastUsed
from . import markup
from .editing import RefusedCaptionsError, digest_of, is_pairs, own_captions
from .interface import json_routes
from .serving import Address, serve_blocks
from .showcase import SHOWN, Showcase
from .uploads import MOST_AT_ONCE, upload_field

logger = logging.getLogger(__name__)

TITLE = "Holistic search"
TEXT, IMAGE = "text", "image"  # what a query is
MOST_THUMBNAILS = 4_096
STRONGEST = 2.0  # a weight
KEPT_SECONDS = 3600  # uploads


def _asset(name: str) -> str:
    """Read a style or a script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Asked:
    """Query as it was asked last, which the boxes of the page need not show any more.

    Args:
        mode: `TEXT` or `IMAGE`.
        text: Text of the query, empty if nothing was asked. Beside an image, the words that go with it.
        image: Image of the query, if it is one.
        weights: Weights of the sliders, in the order of `Page.weighted`.
    """

    mode: str
    text: str
    image: Image.Image | None
    weights: Sequence[float]

    @property
    def words(self) -> str:
        """Text without the spaces around it."""
        return (self.text or "").strip()

    @property
    def example(self) -> Image.Image | None:
        """Image that was asked, if one was."""
        return self.image if self.mode == IMAGE else None


class Pictures:
    """The images of an index as the page shows them; each file is read once, as long as it is remembered."""

    def __init__(self, index: SearchIndex) -> None:
        self.index = index
        self._folder = Folder(index)
        self._thumbnails = LastUsed[str](MOST_THUMBNAILS)

    def thumbnail(self, image_id: str) -> str:
        """Return the value of `src` of an image.

        Raises:
            KeyError, ValueError: as `SearchIndex.image`.
        """
        return self._thumbnails.of(image_id, partial(self._draw, image_id))

    def _draw(self, image_id: str) -> str:
        image = self.index.image(image_id)
        self._folder.remember(image_id, image)
        return markup.picture(image, markup.THUMBNAIL)

    def alike(self, hits: Sequence[Hit]) -> dict[str, Sequence[Hit]]:
        """Return the near-duplicates among some results, by the id of the best."""
        return {fold.hit.image_id: fold.alike for fold in self._folder.fold(hits)}


class Page:
    """The page of a showcase; its methods are what happens on it, and return HTML."""

    def __init__(self, showcase: Showcase) -> None:
        self.showcase = showcase
        self.weighted = [FUSED, *showcase.index.perspectives]
        self._pictures, self._lock = Pictures(showcase.index), Lock()

    def search(self, text: str, *weights: float) -> str:
        """Return results for a text; without one, images from everywhere."""
        return self.results(Asked(TEXT, text, None, weights))

    def results(self, asked: Asked, num_shown: int = 0) -> str:
        """Return the first images for a query, some more than there were."""
        k, pictures = min(max(0, num_shown) + SHOWN, markup.MOST_SHOWN), self._current()
        try:
            wishes = self._wishes(asked)
            if not wishes:
                return self._results(Answer(self.showcase.browse(k, pictures.index)), [], pictures)
            answer = self.showcase.answer(wishes, self._sliders(asked), k=k, index=pictures.index)
            return self._results(answer, wishes, pictures)
        except ValueError as error:
            return markup.problem(str(error))

    def look(self, image: Image.Image | None, *weights: float) -> tuple[str, str, str]:
        """Return similar images, nearest captions, and maps of an uploaded image."""
        if image is None:
            return markup.message("Upload an image to begin."), "", ""
        captions = self.showcase.nearest_captions(image)
        maps = markup.explained(self.showcase.inspect(image))
        told = markup.nearest(captions, self.showcase.branches)
        return self.results(Asked(IMAGE, "", image, weights)), told, f'<div class="hc-maps">{maps}</div>'

    def inspect(self, image_id: str, asked: Asked, editor: str | None = None) -> str:
        """Return one image from all sides, as an answer to the query that was asked, if any.

        Args:
            image_id: Id of the image.
            asked: Query that it was found by.
            editor: HTML of the form for its captions. Default: the form with the captions as they are.
        """
        index = self.showcase.current()
        try:
            image = index.image(image_id)
        except (KeyError, ValueError):
            logger.warning("An image that was asked for cannot be shown.", exc_info=True)
            return ""
        sliders, wishes, hit, told = self._sliders(asked), list[Term](), None, ""
        try:
            wishes = self._wishes(asked)
            if wishes:
                hit = next(iter(self.showcase.search(wishes, sliders, only=image_id, index=index)), None)
        except ValueError as error:
            wishes, told = [], markup.problem(str(error))
        try:
            found = self.showcase.inspect(image, wishes or "", sliders, image_id=image_id)
        except ValueError:
            logger.warning("%s cannot be looked into.", image_id, exc_info=True)
            return ""
        form = self._editor(image_id) if editor is None else editor
        return markup.detail(image_id, image, found, hit=hit, told=told, editor=form)

    def save(self, image_id: str, seen: str, given: Any, asked: Asked) -> str:
        """Save corrected captions and return the image again; what was refused stays in the form."""
        try:
            self.showcase.correct(image_id, seen, given)
        except RefusedCaptionsError as error:
            told = markup.problem(str(error))
        except (KeyError, OSError, ValueError):
            logger.warning("Captions cannot be saved.", exc_info=True)
            told = markup.problem("Not saved: the file of captions cannot be written. Look into the log of the page.")
        else:
            return self.inspect(image_id, asked, self._editor(image_id, markup.saved("Saved.")))
        if not is_pairs(given) or image_id not in self.showcase.index:
            return told
        perspectives = self.showcase.caption_perspectives
        return self.inspect(
            image_id, asked, markup.editor(image_id, [(a, b) for a, b in given], perspectives, seen=seen, told=told)
        )

    def _editor(self, image_id: str, told: str = "") -> str:
        """Return the form for the captions of an image, or nothing where they cannot be corrected."""
        if self.showcase.edited is None:
            return ""
        own = own_captions(self.showcase.captions.get(image_id, ()))
        perspectives = self.showcase.caption_perspectives
        return markup.editor(image_id, own, perspectives, seen=digest_of(own), told=told)

    def _current(self) -> Pictures:
        """Return the images that all of an answer is made of."""
        self.showcase.current()
        with self._lock:  # the newest index is read within, so that nobody goes back to the one before
            if self._pictures.index is not self.showcase.index:
                self._pictures = Pictures(self.showcase.index)
            return self._pictures

    def _wishes(self, asked: Asked) -> list[Term]:
        """Return the terms that were asked; none if nothing was."""
        if not asked.words and asked.example is None:
            return []
        return self.showcase.index.parse(asked.words, like=asked.example)

    def _sliders(self, asked: Asked) -> dict[str, float]:
        return dict(zip(self.weighted, asked.weights, strict=True))

    def _results(self, answer: Answer, wishes: Sequence[Term], pictures: Pictures) -> str:
        shown, thumbnails = [], {}
        for hit in answer.hits:
            try:
                thumbnails[hit.image_id] = pictures.thumbnail(hit.image_id)
            except (KeyError, ValueError):
                logger.warning("%s is in the index and cannot be read.", hit.image_id, exc_info=True)
                continue
            shown.append(hit)
        return markup.results(
            replace(answer, hits=shown),
            thumbnails,
            self.showcase.branches,
            wishes=wishes,
            num_images=len(pictures.index),
            alike=pictures.alike(shown),
            notice=self.showcase.notice,
        )


def build(showcase: Showcase) -> gradio.Blocks:
    """Return the page, not yet served."""
    page = Page(showcase)
    blocks = gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS))
    with blocks:
        head = gradio.HTML(_head(showcase), elem_classes="hc-title")
        with gradio.Tabs():
            with gradio.Tab("By text"):
                with gradio.Row(equal_height=True):
                    text = gradio.Textbox(
                        placeholder="Describe an image …", show_label=False, scale=6, max_length=4_000, autofocus=True
                    )
                    button = gradio.Button("Search", variant="primary", scale=1, min_width=110)
                examples = gradio.HTML(markup.examples(showcase.examples), js_on_load=_asset("ask_example.js"))
            with gradio.Tab("By image"):
                image = upload_field(
                    label="An image of yours", sources=["upload", "clipboard"], height=240, type="pil", buttons=[]
                )
                differing = gradio.Textbox(
                    placeholder="Like this, but …", show_label=False, max_length=4_000, elem_id="hc-differing"
                )
                gradio.HTML(_differing_hint(page.weighted))
                told = [gradio.HTML(), gradio.HTML()]
        with gradio.Accordion("How much each perspective counts", open=True):
            with gradio.Row(elem_id="hc-weights"):
                weights = [_slider(name) for name in page.weighted]
            gradio.HTML(_hint(page.weighted))
        results = gradio.HTML(js_on_load=_asset("open_card.js"), elem_id="hc-results")
        panel = gradio.HTML(js_on_load=_asset("close_panel.js"), elem_id="hc-panel")
        # What was asked last is kept by the browser: the server holds nothing for a visitor who has left.
        asked = [gradio.Textbox(TEXT, visible=False), gradio.Textbox("", visible=False)]
        parts = _Parts(text, image, differing, weights, results, told, asked)
        _wire_queries(page, parts, [text.submit, button.click])
        _wire_examples(page, parts, examples)
        _wire_results(page, parts, panel)
        blocks.load(page.search, [text, *weights], results, api_visibility="private")
        blocks.load(lambda: _head(showcase), None, head, api_visibility="private")
    return blocks


def serve(
    showcase: Showcase,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    block: bool = True,
) -> gradio.Blocks:
    """Serve the page, on this machine alone unless `host` says otherwise; `"0.0.0.0"` is what a Space needs.

    Without `block` it returns at once, and `close()` ends it. With it, it ends by Ctrl-C or a signal to terminate, and
    uploads are removed.

    Args:
        showcase: Images and captions to show.
        host: Address to listen on.
        port: Port to listen on. Default: the first free one from 7860.
        allow_hosts: Further names that the page is served under, such as that of a proxy before it.
        block: Wait until the page ends.
    """
    return serve_blocks(
        lambda: build(showcase),
        Address(host, port, tuple(allow_hosts)),
        routes=json_routes(showcase),
        block=block,
        theme=gradio.themes.Soft(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=_asset("page.css"),
    )


class _Parts(NamedTuple):
    """Components of the page.

    `differing` holds the words that go with an image, `told` what there is to say about it, and `asked` mode and text
    of the query that was asked last.
    """

    text: Any
    image: Any
    differing: Any
    weights: list[Any]
    results: Any
    told: list[Any]
    asked: list[Any]

    @property
    def query(self) -> list[Any]:
        """Inputs that `_asked` reads."""
        return [*self.asked, self.image, *self.weights]


_PRIVATE = {"api_visibility": "private"}
_LIVE = {"show_progress": "minimal", "trigger_mode": "always_last"}
# Images cost more memory than texts.
_HEAVY = {"concurrency_id": "images", "concurrency_limit": MOST_AT_ONCE}


def _wire_queries(page: Page, parts: _Parts, begins: Sequence[Any]) -> None:
    """Connect text, image and sliders to the search."""

    def without_image(text: str, *weights: float) -> tuple[str, str, str, str, str]:
        return page.search(text, *weights), "", "", TEXT, text or ""

    def otherwise(image: Image.Image | None, text: str, *weights: float) -> str:
        if image is None:
            return markup.message("Upload an image to begin.")
        return page.results(Asked(IMAGE, text, image, weights))

    def again(mode: str, text: str, image: Image.Image | None, *weights: float) -> str:
        return page.results(Asked(mode, text, image, weights))

    by_words, shown = [parts.text, *parts.weights], [parts.results, *parts.told]
    gradio.on(begins, page.search, by_words, parts.results, api_name="search", **_LIVE)
    gradio.on(begins, None, parts.text, parts.asked, js=f"text => ['{TEXT}', text]", **_PRIVATE)
    given, options = [parts.image, *parts.weights], {"show_progress_on": parts.image, **_LIVE, **_HEAVY}
    looked = parts.image.upload(page.look, given, shown, api_name="look", **options)
    looked.success(None, None, [*parts.asked, parts.differing], js=f"() => ['{IMAGE}', '', '']", **_PRIVATE)
    parts.image.clear(without_image, by_words, [*shown, *parts.asked], **_PRIVATE)
    by_example = [parts.image, parts.differing, *parts.weights]
    parts.differing.submit(otherwise, by_example, parts.results, **_LIVE, **_PRIVATE, **_HEAVY)
    parts.differing.submit(None, parts.differing, parts.asked, js=f"text => ['{IMAGE}', text]", **_PRIVATE)
    for slider in parts.weights:
        slider.change(again, parts.query, parts.results, **_LIVE, **_PRIVATE, **_HEAVY)


def _wire_examples(page: Page, parts: _Parts, examples: Any) -> None:
    """Make a click on an example ask it."""

    def ask(event: gradio.EventData, *weights: float) -> tuple[str, str, str, str]:
        query = str(event.query)
        return page.search(query, *weights), TEXT, query, query

    examples.ask(ask, parts.weights, [parts.results, *parts.asked, parts.text], **_PRIVATE, **_LIVE)


def _wire_results(page: Page, parts: _Parts, panel: Any) -> None:
    """Make a click on an image open a panel above the page, and one on the button below show more of them."""

    def opened(event: gradio.EventData, mode: str, text: str, image: Any, *weights: float) -> str:
        return page.inspect(str(event.image_id), Asked(mode, text, image, weights))

    def more(event: gradio.EventData, mode: str, text: str, image: Any, *weights: float) -> str:
        num_shown = event.shown if isinstance(event.shown, int) else 0
        return page.results(Asked(mode, text, image, weights), num_shown)

    def inspect(image_id: str, text: str) -> str:
        return page.inspect(image_id, Asked(TEXT, text, None, [1.0, *(0.0 for _ in page.weighted[1:])]))

    def save(event: gradio.EventData, mode: str, text: str, image: Any, *weights: float) -> str:
        return page.save(str(event.image_id), str(event.seen), event.captions, Asked(mode, text, image, weights))

    quiet: dict[str, Any] = {"show_progress": "hidden", **_PRIVATE, **_HEAVY}
    parts.results.inspect(opened, parts.query, panel, **quiet)
    parts.results.more(more, parts.query, parts.results, **quiet)
    gradio.api(inspect, api_name="inspect", **_HEAVY)
    if page.showcase.edited is not None:
        panel.save(save, parts.query, panel, **quiet)


def _slider(name: str) -> gradio.Slider:
    label = "all" if name == FUSED else name.replace("_", " ")
    start = 1.0 if name == FUSED else 0.0
    return gradio.Slider(-STRONGEST, STRONGEST, value=start, step=0.1, label=label, min_width=140)


def _head(showcase: Showcase) -> str:
    num_branches = len(showcase.branches)
    seen = "one perspective" if num_branches == 1 else f"{num_branches} perspectives at once"
    told = f"{len(showcase.current()):,} images, seen by {showcase.name} from {seen}"
    return f"<h1>{TITLE}</h1><p>{markup.escape(told)}</p>"


def _differing_hint(names: Sequence[str]) -> str:
    """Say how an example is changed, or nothing if the index has no perspectives."""
    if len(names) == 1:
        return ""
    name = markup.escape(names[-1].replace("_", " "))
    return (
        f'<p class="hc-hint"><code>but {name}: …</code> finds images that are like yours in all else, and in the '
        f"{name} as you say.</p>"
    )


def _hint(names: Sequence[str]) -> str:
    """Say how one perspective is asked alone, or nothing if the index has none."""
    if len(names) == 1:
        return ""
    name = markup.escape(names[-1].replace("_", " "))
    return (
        f'<p class="hc-hint">One perspective alone: <code>{name}: …</code>, against it: <code>not {name}: …</code>, '
        f"several at once with semicolons between them.</p>"
    )
