"""`holistic-clip evaluate`: every task from files to records, against the functions behind it; what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import build_corpus
from holistic_clip_hf.evaluation import probes as linear_probe
from holistic_clip_hf.evaluation.benchmarks import classify_by
from holistic_clip_hf.evaluation.branch_report import report_branches
from holistic_clip_hf.evaluation.classification import evaluate_classification, load_templates
from holistic_clip_hf.evaluation.probes import evaluate_probes
from holistic_clip_hf.evaluation.records import Record, capture_provenance, load_records
from holistic_clip_hf.evaluation.retrieval import embed_corpus, evaluate_retrieval

MakeModel = Callable[..., HolisticCLIPModel]
NAMES = ["short", "colour", "shape"]


@pytest.fixture
def checkpoint(make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> HolisticCLIPModel:
    model = make_model(perspectives=NAMES)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "tiny")
    return model


@pytest.fixture
def splits(corpus: Dataset, tmp_path: Path) -> dict[str, Dataset]:
    """Eight drawings each, for training and for the test."""
    features = Features({**corpus.features, "part": Value("string")})
    rows = [
        {**row, "image_id": f"{part}/{row['image_id']}", "part": part} for part in ("train", "test") for row in corpus
    ]
    build_corpus(tmp_path / "corpus", {"all": lambda: rows}, features, fingerprint="1")
    return {"train": corpus, "test": corpus}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Record]]:
    """`run("--tasks", "retrieval")`: the records that are in the file afterwards."""
    monkeypatch.setattr(linear_probe, "INVERSE_REGULARISATIONS", (0.1, 10.0))  # a few steps each

    def call(*options: str) -> list[Record]:
        output = tmp_path / "results.json"
        common = ["--model", tmp_path / "tiny", "--output", output, "--corpus", tmp_path / "corpus"]
        common += ["--split-column", "part"]
        parse("evaluate", [*map(str, common), *options])()
        return load_records(output)

    return call


def told(records: list[Record]) -> dict[Any, float]:
    return {
        (record.task, record.dataset, record.split, record.label, str(sorted(record.details.items()))): record.value
        for record in records
    }


def test_every_task_on_a_corpus(
    checkpoint: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    splits: dict[str, Dataset],
    run: Callable[..., list[Record]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = run("--tasks", "retrieval", "--protocols", "standard", "paper", "caption_sets")
    assert "by name" in capsys.readouterr().out
    pictures = ["--picture", str(tmp_path / "new" / "grid.png"), "--branch-picture", str(tmp_path / "new" / "b.png")]
    tasks = ["--tasks", "retrieval", "branches", "classification", "probes"]
    found = run(*tasks, "--classes", "colour", "--templates", "plain", "--neighbours", "3", *pictures)
    printed = capsys.readouterr().out

    provenance = capture_provenance(model="tiny", dataset="corpus", split="test", seed=0)
    common: dict[str, Any] = {"perspectives": NAMES}
    expected = evaluate_retrieval(
        checkpoint,
        processor,
        splits["test"],
        provenance=provenance,
        protocols=["per_perspective", "standard", "paper", "caption_sets"],
        **common,
    )
    expected += report_branches(
        checkpoint, embed_corpus(checkpoint, processor, splits["test"], **common), provenance=provenance
    )
    provenance = capture_provenance(model="tiny", dataset="corpus, by colour", split="test", seed=0)
    (classified,) = classify_by("colour", splits["test"])
    options: dict[str, Any] = {"provenance": provenance, "class_names": classified.class_names}
    expected += evaluate_classification(
        checkpoint, processor, classified.dataset, templates=load_templates("plain"), **options
    )
    expected += evaluate_probes(checkpoint, processor, classified.dataset, classified.dataset, neighbours=3, **options)
    assert told(found) == pytest.approx(told(expected), abs=1e-6)
    assert told(first).items() <= told(found).items(), "records are merged"

    (accuracy,) = [
        record for record in found if record.label == "accuracy@1" and record.details.get("templates")
        if record.details["branch"] == "fused"
    ]  # fmt: skip
    assert f"{100 * accuracy.value:.1f} /25.0" in printed
    for heading in ("retrieval, per perspective on corpus, test", "branches on corpus, test", "linear probe on"):
        assert f"== {heading}" in printed
    assert "zero shot classification, plain on corpus, by colour, test" in printed and "neighbours 3" in printed
    assert all(Image.open(tmp_path / "new" / name).width > 100 for name in ("grid.png", "b.png"))


def test_benchmarks_by_their_folders(
    checkpoint: HolisticCLIPModel, run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)) for _ in range(4)]
    for folder in ("urban/image", "urban/caption", "voc/JPEGImages", "voc/SegmentationClass", "net/val"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Segmentation").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(tmp_path / f"urban/image/{number}.jpg")
        (tmp_path / f"urban/caption/{number}.txt").write_text(f"a {('red', 'green', 'blue', 'yellow')[number]} street")
        (tmp_path / f"net/val/{('n01440764', 'n01443537')[number % 2]}").mkdir(exist_ok=True)
        image.save(tmp_path / f"net/val/{('n01440764', 'n01443537')[number % 2]}/{number}.JPEG")
    images[0].save(tmp_path / "voc/JPEGImages/a.jpg")
    Image.fromarray(generator.integers(0, 3, (40, 48), dtype=np.uint8)).save(tmp_path / "voc/SegmentationClass/a.png")
    (tmp_path / "voc/ImageSets/Segmentation/val.txt").write_text("a\n")
    found = run(
        *("--corpus", f"urban1k={tmp_path / 'urban'}", "--protocols", "standard", "--templates", "openai-7"),
        *("--classes", f"imagenet={tmp_path / 'net'}", "--masks", f"voc21={tmp_path / 'voc'}"),
        *("--tasks", "segmentation", "classification", "retrieval"),
    )
    assert {(record.task, record.dataset, record.split) for record in found} == {
        ("retrieval", "urban1k", "test"),
        ("zero_shot_classification", "imagenet", "test"),
        ("segmentation", "voc21", "validation"),
    }
    overlaps = [record for record in found if record.metric == "mean_iou"]
    assert {record.details["readout"] for record in overlaps} == {"class_path", "value"}
    assert {record.details["background"] for record in overlaps} == {"background"}
    assert all(record.counts["n_classes"] == 3 and 0 < record.value < 1 for record in overlaps)


def test_probes_may_be_given_a_part(
    checkpoint: HolisticCLIPModel, splits: dict[str, Dataset], run: Callable[..., list[Record]]
) -> None:
    options = ["--tasks", "probes", "--classes", "colour", "--neighbours", "2", "--most-train", "6"]
    found = run(*options)
    assert {record.counts["n_train"] for record in found} == {6}
    assert told(run(*options)) == told(found), "the same part again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "probes"], "need --classes"),
        (["--tasks", "segmentation"], "needs --masks"),
        (["--tasks", "classification", "--classes", "x", "--branch-picture", "b.png"], "drawn from the tasks"),
        (["--tasks", "classification", "--classes", "x", "--picture", "b.png"], "add the task"),
        (["--tasks", "singing"], "invalid choice: 'singing'"),
        (["--protocols", "karpathy"], "invalid choice: 'karpathy'"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(
    options: list[str], message: str, run: Callable[..., list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(*options)
    assert message in capsys.readouterr().err


def test_data_that_is_not_there_is_named(
    checkpoint: HolisticCLIPModel, splits: dict[str, Dataset], run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="classes 'mood'. Valid: a perspective"):
        run("--tasks", "classification", "--classes", "mood")
    with pytest.raises(ValueError, match="masks 'voc21'; expected a benchmark and its root"):
        run("--tasks", "segmentation", "--masks", "voc21")
    with pytest.raises(ValueError, match="benchmark 'mnist'. Valid: coco"):
        run("--corpus", f"mnist={tmp_path}")
    with pytest.raises(ValueError, match="templates 'mine'. Valid: plain"):
        run("--tasks", "classification", "--classes", "colour", "--templates", "mine")
