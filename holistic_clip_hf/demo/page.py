# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The page, built of gradio, and how it is served: no telemetry, no files of the machine, requests of bounded size."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import gradio
from PIL import Image
from starlette.middleware import Middleware

from ..search import FUSED, Hit
from . import markup
from .guard import MOST_BYTES, RequestGuard, upload_field
from .showcase import Showcase

logger = logging.getLogger(__name__)

TITLE = "Holistic search"
MOST_WAITING = 256  # requests; beyond, visitors are asked to come back
MOST_THUMBNAILS = 4_096
STRONGEST = 2.0  # a weight
OVERHEAD = 2**20  # bytes of a request besides the file in it
KEPT_SECONDS = 3600  # uploads


def _asset(name: str) -> str:
    """Read a style or a script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class Page:
    """The page of a showcase; its methods are what happens on it, and return HTML."""

    def __init__(self, showcase: Showcase) -> None:
        self.showcase = showcase
        self.weighted = [FUSED, *showcase.index.perspectives]
        self._thumbnails: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def search(self, text: str, *weights: float) -> str:
        """Return results for a text; without one, images from everywhere."""
        if not (text or "").strip():
            return self._results(self.showcase.browse())
        return self._asked(text, weights)

    def look(self, image: Image.Image | None, *weights: float) -> tuple[str, str, str]:
        """Return similar images, nearest captions, and maps of an uploaded image."""
        if image is None:
            return markup.message("Upload an image to begin."), "", ""
        captions = self.showcase.nearest_captions(image)
        found = self.showcase.inspect(image)
        maps = markup.tiles_of(found.seen, "Where each branch looks", "In your image.", found.attention)
        told = markup.nearest(captions, self.showcase.branches)
        return self._asked(image, weights), told, f'<div class="hc-maps">{maps}</div>'

    def again(self, mode: str, text: str, image: Image.Image | None, *weights: float) -> str:
        """Return results for what was asked last, with other weights."""
        if mode == "image" and image is not None:
            return self._asked(image, weights)
        return self.search(text, *weights)

    def inspect(self, image_id: str, text: str, *weights: float) -> str:
        """Return one image from all sides; the text is what it was found by, if any."""
        index = self.showcase.index
        try:
            image = index.image(image_id)
            found = self.showcase.inspect(image, text or "", image_id=image_id)
        except (KeyError, ValueError):
            logger.warning("An image that was asked for cannot be shown.", exc_info=True)
            return ""
        return markup.detail(self._hit(image_id, text, weights), image_id, image, found, (text or "").strip())

    def _asked(self, query: str | Image.Image, weights: Sequence[float]) -> str:
        try:
            hits = self.showcase.search(query, dict(zip(self.weighted, weights, strict=True)))
        except ValueError as error:
            return markup.message(str(error))
        return self._results(hits)

    def _hit(self, image_id: str, text: str, weights: Sequence[float]) -> Hit | None:
        """Return the image as an answer to the text, with the reasons for its score."""
        if not (text or "").strip():
            return None
        try:
            hits = self.showcase.search(text, dict(zip(self.weighted, weights, strict=True)), only=image_id)
        except ValueError:
            return None
        return hits[0] if hits else None

    def _results(self, hits: Sequence[Hit]) -> str:
        shown, thumbnails = [], {}
        for hit in hits:
            try:
                thumbnails[hit.image_id] = self._thumbnail(hit.image_id)
            except (KeyError, ValueError):
                logger.warning("%s is in the index and cannot be read.", hit.image_id, exc_info=True)
                continue
            shown.append(hit)
        return markup.results(shown, thumbnails, self.showcase.branches)

    def _thumbnail(self, image_id: str) -> str:
        with self._lock:
            if image_id in self._thumbnails:
                self._thumbnails.move_to_end(image_id)
                return self._thumbnails[image_id]
        found = markup.picture(self.showcase.index.image(image_id), markup.THUMBNAIL)
        with self._lock:
            self._thumbnails[image_id] = found
            if len(self._thumbnails) > MOST_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return found


def build(showcase: Showcase) -> gradio.Blocks:
    """Return the page, not yet served."""
    page = Page(showcase)
    blocks = gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS))
    with blocks:
        gradio.HTML(_head(showcase), elem_classes="hc-title")
        with gradio.Tabs():
            with gradio.Tab("By text"), gradio.Row(equal_height=True):
                text = gradio.Textbox(
                    placeholder="Describe an image …", show_label=False, scale=6, max_length=4_000, autofocus=True
                )
                button = gradio.Button("Search", variant="primary", scale=1, min_width=110)
            with gradio.Tab("By image"):
                image = upload_field(
                    label="An image of yours", sources=["upload", "clipboard"], height=240, type="pil", buttons=[]
                )
                told = [gradio.HTML(), gradio.HTML()]
        with gradio.Accordion("How much each perspective counts", open=True):
            with gradio.Row(elem_id="hc-weights"):
                weights = [_slider(name) for name in page.weighted]
            gradio.HTML(_hint(page.weighted))
        results = gradio.HTML(js_on_load=_asset("open_card.js"), elem_id="hc-results")
        _wire_queries(page, text, button, image, weights, results, told)
        _wire_panel(page, text, weights, results)
        blocks.load(page.search, [text, *weights], results, api_visibility="private")
    return blocks


def serve(
    showcase: Showcase, *, host: str = "127.0.0.1", port: int | None = None, block: bool = True
) -> gradio.Blocks:
    """Serve the page, on this machine alone unless `host` says otherwise; `"0.0.0.0"` is what a Space needs.

    Without `block` it returns at once, and `close()` ends it.
    """
    blocks = build(showcase)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=4, api_open=False)
    # `launch`, not `mount_gradio_app`: a mounted page of gradio 6.31 takes any path for an uploaded file.
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        show_error=False,
        prevent_thread_lock=True,
        max_file_size=MOST_BYTES,
        app_kwargs={"middleware": [Middleware(RequestGuard, most_bytes=MOST_BYTES + OVERHEAD)]},
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        footer_links=["api", "gradio"],
        _frontend=False,  # spares a check that gives the page 3 seconds, and else demands a public link
        theme=gradio.themes.Soft(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=_asset("page.css"),
    )
    logger.info("The page is at %s", blocks.local_url)
    if block:
        blocks.block_thread()
    return blocks


def _wire_queries(
    page: Page, text: Any, button: Any, image: Any, weights: list[Any], results: Any, told: list[Any]
) -> None:
    """Connect text, image and sliders to the search. `told` is filled with what there is to say about the image."""
    mode, private = gradio.State("text"), {"api_visibility": "private"}
    live = {"show_progress": "minimal", "trigger_mode": "always_last"}

    def by_text(*given: Any) -> tuple[str, str]:
        return "text", page.search(*given)

    def by_image(*given: Any) -> tuple[str, str, str, str]:
        return "image", *page.look(*given)

    def without_image(*given: Any) -> tuple[str, str, str, str]:
        return "text", page.search(*given), "", ""

    asked, shown = [text, *weights], [mode, results, *told]
    gradio.on([text.submit, button.click], by_text, asked, [mode, results], api_name="search", **live)
    image.upload(by_image, [image, *weights], shown, api_name="look", show_progress_on=image)
    image.clear(without_image, asked, shown, **private)
    for slider in weights:
        slider.change(page.again, [mode, text, image, *weights], results, **live, **private)


def _wire_panel(page: Page, text: Any, weights: list[Any], results: Any) -> None:
    """Make a click on an image open a panel above the page."""
    panel = gradio.HTML(js_on_load=_asset("close_panel.js"), elem_id="hc-panel")

    def opened(event: gradio.EventData, *given: Any) -> str:
        return page.inspect(str(event.image_id), *given)

    def inspect(image_id: str, text: str) -> str:
        return page.inspect(image_id, text, 1.0, *[0.0 for _ in page.weighted[1:]])

    results.inspect(opened, [text, *weights], panel, show_progress="hidden", api_visibility="private")
    gradio.api(inspect, api_name="inspect")


def _slider(name: str) -> gradio.Slider:
    label = "all" if name == FUSED else name.replace("_", " ")
    start = 1.0 if name == FUSED else 0.0
    return gradio.Slider(-STRONGEST, STRONGEST, value=start, step=0.1, label=label, min_width=140)


def _head(showcase: Showcase) -> str:
    told = (
        f"{len(showcase.index):,} images, seen by {showcase.name} from {len(showcase.branches)} perspectives at once"
    )
    return f"<h1>{TITLE}</h1><p>{markup.escape(told)}</p>"


def _hint(names: Sequence[str]) -> str:
    """Say how one perspective is asked alone, or nothing if the index has none."""
    if len(names) == 1:
        return ""
    name = markup.escape(names[-1].replace("_", " "))
    return (
        f'<p class="hc-hint">One perspective alone: <code>{name}: …</code>, against it: <code>not {name}: …</code>, '
        f"several at once with semicolons between them.</p>"
    )
