"""A page that searches without a server, exported over drawings, and a server of files on loopback."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.exporting.browser_folder import NODE_FILES
from holistic_clip_hf.search import FolderImages, Hit, SearchIndex, Term, index_images

ROOT = Path(__file__).resolve().parents[1]
# npm install --prefix build/npm @huggingface/transformers@4
NODE_MODULES = ROOT / "build" / "npm" / "node_modules"
PAGE = ROOT / "holistic_clip_hf" / "exporting" / "page"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs node")
needs_npm = pytest.mark.skipif(not NODE_MODULES.is_dir(), reason="needs transformers.js in build/npm")


def index_of(photos: Path, directory: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> SearchIndex:
    index_images(directory, FolderImages(photos), model, processor)
    return SearchIndex(directory, model, processor)


def fill_node_modules(folder: Path, version: str = "4.3.1", runtime: str = "1.31.0") -> Path:
    """A folder as npm makes it, with files of one letter, of a transformers.js that wants the runtime 1.31.0."""
    facts = [{"version": version, "dependencies": {"onnxruntime-web": "1.31.0"}}, {"version": runtime}]
    for (name, files), about in zip(NODE_FILES.items(), facts, strict=True):
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text("x")
        (folder / name / "package.json").write_text(json.dumps(about))
    return folder


def run_node(script: str, *given: Any) -> Any:
    """What a module prints as JSON; `given` stands in `given`, and `page` is the folder of the page's scripts."""
    head = "const given = JSON.parse(process.argv[1]); const page = process.argv[2];\n"
    command = ["node", "--input-type=module", "-e", head + script, json.dumps(given), PAGE.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def with_sliders(index: SearchIndex, query: str, sliders: dict[str, float]) -> list[Term]:
    """The terms of a query in which sliders stand for what names no perspective."""
    terms: list[Term] = []
    for term in index.parse(query):
        named = term.perspective != "fused"
        terms += (
            [term] if named else [Term(term.text, None, name, term.weight * w) for name, w in sliders.items() if w]
        )
    return terms


def scores_of(hits: Sequence[Hit]) -> dict[str, float]:
    return {hit.image_id: hit.score for hit in hits}
