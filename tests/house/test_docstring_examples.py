"""The examples of docstrings run, and print what they say; those that say nothing may print anything.

They may use what stands in `names`: a tiny model, drawings, and the files that a small project would have.
"""

import doctest
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F

import holistic_clip_hf
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.branch_report import report_branches
from holistic_clip_hf.evaluation.records import capture_provenance, save_records
from holistic_clip_hf.evaluation.retrieval import embed_corpus, measure_retrieval
from holistic_clip_hf.search import DatasetImages, index_images
from holistic_clip_hf.visualization.attention import branch_attention, patch_grid

PERSPECTIVES = ["short", "main_object", "background", "style"]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LOG = [
    {"step": 210, "eval_loss": 3.42, "eval_text_to_image_recall@5": 0.2},
    {"step": 420, "eval_loss": 3.07, "eval_text_to_image_recall@5": 0.3},
]


class AnythingIfUnsaid(doctest.OutputChecker):
    """A checker to which an example without an output says nothing."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def modules() -> list[str]:
    found = pkgutil.walk_packages(holistic_clip_hf.__path__, "holistic_clip_hf.")
    return [each.name for each in found if not each.name.endswith("__main__") and ".modules." not in each.name]


def examples() -> dict[str, doctest.DocTest]:
    found = {}
    for name in modules():
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder().find(module, globs=dict(vars(module))):
            if test.examples:
                found[test.name.removeprefix("holistic_clip_hf.")] = test
    return found


EXAMPLES = examples()


@pytest.fixture
def names(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Names that examples may use, and, in the working folder, the files that they name."""
    monkeypatch.chdir(tmp_path)
    model = make_model(perspectives=PERSPECTIVES, vision={"num_branches": len(PERSPECTIVES)})
    style = {"colour": "style", "shape": "main_object"}
    rows = corpus.map(
        lambda row: {"captions": [{**c, "perspective": style.get(c["perspective"], "short")} for c in row["captions"]]}
    )
    images = DatasetImages(rows)
    index_images("photos.index", images, model, processor)
    run = capture_provenance(model="emoji", dataset="squares", split="test", seed=0)
    embedded = embed_corpus(model, processor, rows, perspectives=["short", "main_object", "style"])
    records = measure_retrieval(model, embedded, provenance=run)
    save_records("results.json", [*records, *report_branches(model, embedded, provenance=run)])
    Path("runs/emoji/holistic").mkdir(parents=True)
    Path("runs/emoji/holistic/trainer_state.json").write_text(json.dumps({"log_history": LOG}))
    pictures = [row["image"] for row in rows]
    pixels = processor(images=pictures[:1], return_tensors="pt")["pixel_values"]
    return {
        **{name: getattr(holistic_clip_hf, name) for name in holistic_clip_hf.__all__},
        "branch_attention": branch_attention,
        "patch_grid": patch_grid,
        "model": model,
        "config": model.config,
        "processor": processor,
        "corpus": rows,
        "images": pictures,
        "image": pictures[0],
        "red": pictures[0],
        "blue": pictures[1],
        "pixels": pixels,
        "pixel_values": pixels,
        "tokens": dict(processor(text=["a red square"], return_tensors="pt")),
        "torch": torch,
        "F": F,
        "Image": Image,
        "Path": Path,
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, names: dict[str, Any]) -> None:
    test = EXAMPLES[name]
    test.globs = {**test.globs, **names}
    told: list[str] = []
    failed = doctest.DocTestRunner(AnythingIfUnsaid(), optionflags=OPTIONS).run(test, out=told.append).failed
    assert not failed, "".join(told)
