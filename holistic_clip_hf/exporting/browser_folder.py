# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Search page without a server: files that any host of files serves, which search an index in the browser.

    index.html, *.js, page.css   the page, from this package
    search.json                  names of images and perspectives, fusion, rules of texts
    vectors.bin                  vectors of the index, by branch, in the order of the names
    thumbnails/*.webp            images, by their place in that order
    model/                       text tower for transformers.js
    transformers/                transformers.js and its WebAssembly, copied from `node_modules`

transformers.js is copied and not named by an address, so that the page works without the internet, asks nobody else
for anything, and goes on working as it was verified.

Axes: N images, H branches, D projection width.
"""

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..images.decoding import map_ahead
from ..images.sources import Images
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import PLAIN_LETTERS, HolisticCLIPProcessor, on_background
from ..search import SearchIndex
from ..search.index import Asker
from ..search.query import MOST_LETTERS, MOST_TERMS
from ..search.scoring import FLOOR, MOST_SAMPLED
from ..storage import folder_bytes, new_folder, parse_json, write_json
from ..visualization.result_grid import LABEL_COLOURS
from .graphs import TextGraph, stock_kind
from .onnx_folder import GraphOptions, OnnxExport, require_runtime, write_onnx
from .verification import ProbeImages

PAGE = Path(__file__).with_name("page")
TRANSFORMERS, RUNTIME = "@huggingface/transformers", "onnxruntime-web"
# By npm package, the files that the page loads. The smaller build of the runtime, which every browser takes.
NODE_FILES = {
    TRANSFORMERS: ("dist/transformers.min.js", "LICENSE"),
    RUNTIME: ("dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
}
MAJOR = "4."  # of transformers.js, as tested
THUMBNAIL, QUALITY = 320, 80  # pixels of the longer side: a card on a screen of two dots for a pixel
AHEAD, THREADS = 16, 4  # images that are decoded at once
MOST_BYTES = 1_000_000_000  # of vectors, which a tab holds in one piece


class PageExport(NamedTuple):
    """Page that was written.

    Args:
        images: Number of images that it finds.
        without_thumbnail: Reasons by name of the images that are found and not shown.
        num_bytes: Size of the folder.
        graphs: Text tower, measured.
    """

    images: int
    without_thumbnail: dict[str, str]
    num_bytes: int
    graphs: OnnxExport


def export_page(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    index: str | Path,
    output: str | Path,
    *,
    node_modules: str | Path = "node_modules",
    int8: bool = False,
    half: bool = False,
    images: Images | None = None,
) -> PageExport:
    """Write a page that searches an index by perspective, as `SearchIndex.search` does with `exact=True`.

    Args:
        model: the model.
        processor: Processor of the model.
        index: Folder of the index, which the model made.
        output: Folder to write, new or empty.
        node_modules: Folder into which npm installed transformers.js.
        int8: Take a text tower with 8-bit weights, which is smaller and gives other scores.
        half: Write vectors with 16 bits: half their size, scores that differ by less than 0.001.
        images: Source of what was indexed. Default: the folder that the index remembers.

    Raises:
        ValueError: an index of another checkpoint, of fused vectors or of more images than a browser holds, no
            transformers.js, or a folder that holds anything.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the text tower gives other numbers.
    """
    require_runtime()
    packages = _require_node_modules(Path(node_modules))
    opened = SearchIndex(index, model, processor, images=images)
    _require_searchable(opened, model.config.projection_dim, half)
    with new_folder(Path(output), holds="an export") as folder:
        for path in PAGE.iterdir():
            shutil.copyfile(path, folder / path.name)
        (folder / "transformers").mkdir()
        for path in packages:
            shutil.copyfile(path, folder / "transformers" / path.name)
        graph_options = GraphOptions("transformers.js", int8, keep_full=False, kinds=[TextGraph])
        (folder / "model").mkdir()
        graphs = write_onnx(model, processor, folder / "model", graph_options, ProbeImages(processor))
        vectors = _vectors(opened).astype(np.float16 if half else np.float32)
        (folder / "vectors.bin").write_bytes(vectors.tobytes())
        missing = _write_thumbnails(opened, folder / "thumbnails")
        facts = _facts(opened, Asker(model, processor, opened.layout), vectors, missing)
        facts["text"] = _text_facts(model, processor, int8)
        write_json(folder / "search.json", facts, indent=0)
        num_bytes = folder_bytes(folder)
    return PageExport(len(opened), missing, num_bytes, graphs)


def _require_node_modules(folder: Path) -> list[Path]:
    """Return the files that the page takes of npm's packages."""
    install = f"Run: npm install {TRANSFORMERS}@4, and name the folder `node_modules` that it makes."
    versions, needed = {}, {}
    for name in NODE_FILES:
        path = folder / name / "package.json"
        if not path.is_file():
            raise ValueError(f"`node_modules` is {folder}, which holds no {name}; expected it. {install}")
        found = parse_json(path.read_bytes())
        versions[name], needed[name] = str(found.get("version")), dict(found.get("dependencies") or {})
    wanted = needed[TRANSFORMERS].get(RUNTIME)
    if not versions[TRANSFORMERS].startswith(MAJOR) or versions[RUNTIME] != wanted:
        told = " and ".join(f"{name} {version}" for name, version in versions.items())
        raise ValueError(
            f"`node_modules` is {folder}, which holds {told}; expected {TRANSFORMERS} {MAJOR}x with its own "
            f"{RUNTIME}. {install}"
        )
    files = [folder / name / file for name, names in NODE_FILES.items() for file in names]
    for path in files:
        if not path.is_file():
            raise ValueError(f"`node_modules` is {folder}, in which {path.name} is missing; expected it. {install}")
    return files


def _require_searchable(index: SearchIndex, whole: int, half: bool) -> None:
    if not index.perspectives:
        raise ValueError(
            f"`index` is {index.directory}, which holds fused vectors alone; expected those of branches. Index again "
            "with vectors='branches'."
        )
    if index.layout.width != whole:
        raise ValueError(
            f"`index` is {index.directory}, which keeps {index.layout.width} of {whole} dimensions; expected all of "
            "them. Index again without `--dimensions`."
        )
    num_bytes = len(index) * len(index.perspectives) * index.layout.width * (2 if half else 4)
    if num_bytes > MOST_BYTES:
        raise ValueError(
            f"`index` is {index.directory}, whose {len(index):,} images have {num_bytes / 1e6:,.0f} MB of vectors; "
            f"expected at most {MOST_BYTES / 1e6:,.0f} MB, as a browser holds. Index fewer images"
            + ("." if half else ", or write `half` as many bytes.")
        )


def _vectors(index: SearchIndex) -> np.ndarray:
    """Return all vectors (H, N, D), images in the order of their names."""
    place = {image_id: number for number, image_id in enumerate(index.image_ids)}
    found = np.empty((len(index.perspectives), len(index), index.layout.width), dtype=np.float32)
    for facts, vectors in index.rows(4_096):
        found[:, [place[fact["image_id"]] for fact in facts]] = vectors.transpose(1, 0, 2)
    return found


def _write_thumbnails(index: SearchIndex, folder: Path) -> dict[str, str]:
    """Write an image for each name, and return why others have none."""
    folder.mkdir()
    missing: dict[str, str] = {}

    def make(image_id: str) -> bytes | str:
        try:
            return _thumbnail(index.image(image_id))
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        made: Iterator[bytes | str] = map_ahead(pool, AHEAD, make, index.image_ids)
        bar = tqdm(made, total=len(index), desc="thumbnails", unit="image", leave=False, disable=None)
        for number, found in enumerate(bar):
            if isinstance(found, str):
                missing[index.image_ids[number]] = found
            else:
                (folder / f"{number:06d}.webp").write_bytes(found)
    return missing


def _thumbnail(image: Image.Image) -> bytes:
    drawn = on_background(image)
    drawn.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    drawn.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()


def _facts(index: SearchIndex, asker: Asker, vectors: np.ndarray, missing: dict[str, str]) -> dict[str, Any]:
    shares = None if asker.fusion.is_routed else asker.shares().tolist()
    return {
        "checkpoint": index.layout.checkpoint,
        "perspectives": index.perspectives,
        "colours": [LABEL_COLOURS[place % len(LABEL_COLOURS)] for place in range(len(index.perspectives))],
        "width": index.layout.width,
        "fusion": {
            "combine": asker.combine,
            "shares": shares,
            "scale": asker.scale,
            "is_routed": asker.fusion.is_routed,
        },
        "floor": {"spreads": FLOOR, "sampled": MOST_SAMPLED},
        "vectors": {"file": "vectors.bin", "kind": vectors.dtype.name, "bytes": vectors.nbytes},
        "images": index.image_ids,
        "without_thumbnail": [place for place, name in enumerate(index.image_ids) if name in missing],
        "limits": {"letters": MOST_LETTERS, "terms": MOST_TERMS},
    }


def _text_facts(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, int8: bool) -> dict[str, Any]:
    """Return how the page cleans and cuts texts before its tokenizer and its tower read them."""
    tokenizer: Any = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    ids = tokenizer("a")["input_ids"]
    num_end = next(number for number, each in enumerate(reversed(ids)) if each not in special)
    return {
        "kind": stock_kind(model),
        "dtype": "q8" if int8 else "fp32",
        "max_length": tokenizer.model_max_length,
        "num_end": num_end,
        "special": tokenizer.all_special_tokens,
        "letters": {chr(letter): plain for letter, plain in PLAIN_LETTERS.items()},
        **({"captions": _caption_facts(processor)} if processor.caption_form else {}),
    }


def _caption_facts(processor: HolisticCLIPProcessor) -> dict[str, Any]:
    """Return how the page writes a text that one perspective is asked with."""
    return {"form": processor.caption_form, "perspectives": processor.caption_perspectives}


__all__ = ["PageExport", "export_page"]
