"""`holistic-clip evaluate`: every task from files to records, against the functions behind it; what it refuses."""

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.remote_backend import IMAGE_FORMATS, Patience
from holistic_clip_hf.checkpoint_files import CALIBRATION_FILE
from holistic_clip_hf.cli import caption, fit, publish, search
from holistic_clip_hf.cli import corpus as corpus_verb
from holistic_clip_hf.cli.evaluate import TASKS, Classes, Masks, Task, Texts
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import build_corpus
from holistic_clip_hf.corpus.plan import BuildSettings
from holistic_clip_hf.evaluation import probes as linear_probe
from holistic_clip_hf.evaluation.benchmarks import classify_by
from holistic_clip_hf.evaluation.branch_report import report_branches
from holistic_clip_hf.evaluation.calibration import (
    Calibration,
    ScoreCalibration,
    fusion_facts,
    save_calibration,
)
from holistic_clip_hf.evaluation.classification import evaluate_classification, load_templates
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.evaluation.fusion_fitting import FITTED
from holistic_clip_hf.evaluation.probes import evaluate_probes
from holistic_clip_hf.evaluation.records import Record, capture_provenance, load_records
from holistic_clip_hf.evaluation.retrieval import RETRIEVAL_PROTOCOLS, embed_corpus, evaluate_retrieval
from holistic_clip_hf.evaluation.segmentation import READOUTS
from holistic_clip_hf.publishing.checkpoint import MAX_SHARD_SIZE
from holistic_clip_hf.publishing.model_card import CardFacts, save_facts
from holistic_clip_hf.publishing.push import MAIN
from holistic_clip_hf.search.neighbours import AUTO, LOOKUPS
from holistic_clip_hf.search.store import PRECISIONS, VECTORS

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
        parse("evaluate", [*common(tmp_path, with_corpus="--corpus" not in options), *options])()
        return load_records(tmp_path / "results.json")

    return call


def common(folder: Path, with_corpus: bool = True) -> list[str]:
    """Options of every call."""
    found = ["--model", folder / "tiny", "--output", folder / "results.json"]
    return [*map(str, [*found, *(["--corpus", folder / "corpus", "--split-column", "part"] if with_corpus else [])])]


def told(records: list[Record]) -> dict[Any, float]:
    return {
        (record.task, record.dataset, record.split, record.label, str(sorted(record.details.items()))): record.value
        for record in records
    }


def test_records_name_a_model_as_its_card_does(
    checkpoint: HolisticCLIPModel, splits: dict[str, Dataset], run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    assert {record.model for record in run("--tasks", "retrieval")} == {"tiny"}
    save_facts(tmp_path / "tiny" / "card_facts.json", CardFacts("me/mine", model_name="mine"))
    assert {record.model for record in run("--tasks", "retrieval")} == {"tiny", "mine"}
    assert "given" in {record.model for record in run("--tasks", "retrieval", "--name", "given")}


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
    entry = {"qry_text": "a red street", "tgt_img_path": ["urban/image/0.jpg", "urban/image/1.jpg"]}
    (tmp_path / "mix_weather_retrieval.json").write_text(json.dumps([entry]))
    found = run(
        *("--corpus", f"urban1k={tmp_path / 'urban'}", "--protocols", "standard", "--templates", "openai-7"),
        *("--classes", f"imagenet={tmp_path / 'net'}", "--masks", f"voc21={tmp_path / 'voc'}"),
        *("--tasks", "segmentation", "classification", "retrieval", "cases", "--cases", f"coco-facet={tmp_path}"),
    )
    assert {(record.task, record.dataset, record.split) for record in found} == {
        ("retrieval", "urban1k", "test"),
        ("zero_shot_classification", "imagenet", "test"),
        ("segmentation", "voc21", "validation"),
        ("cases", "coco-facet", "test"),
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
        (["--tasks", "probes"], "`--classes` is missing"),
        (["--tasks", "segmentation"], "`--masks` is None; segmentation expects a benchmark and its folder"),
        (["--tasks", "segmentation", "--masks", "voc21"], "`--masks` is 'voc21'"),
        (["--tasks", "classification", "--classes", "x", "--branch-picture", "b.png"], "`--branch-picture` is given"),
        (["--tasks", "classification", "--classes", "x", "--picture", "b.png"], "`--picture` is given without"),
        (["--tasks", "cases"], "`--cases` is None; cases expect a benchmark and its folder, as coco-facet=DIR"),
        (["--cases", "coco-facet=c"], "`--cases` is given without cases"),
        (["--masks", "voc21=v"], "`--masks` is given without segmentation, by which alone it is used"),
        (["--classes", "colour"], "`--classes` is given without classification or probes"),
        (
            ["--tasks", "classification", "--classes", "imagenet=i"],
            "`--corpus` is given without answers or branches or",
        ),
        (["--tasks", "branches", "--protocols", "paper"], "`--protocols` is given without retrieval"),
        (["--neighbours", "3"], "`--neighbours` is given without probes"),
        (["--tasks"], "`--tasks` is empty; expected one or several"),
        (["--batch-size", "-3"], "`--batch-size` is -3; expected 1 or more"),
        (["--tasks", "probes", "--classes", "colour", "--most-train", "0"], "`--most-train` is 0"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(
    options: list[str], message: str, run: Callable[..., list[Record]]
) -> None:
    with pytest.raises(ValueError, match=message):
        run(*options)


def test_places_are_checked_before_anything_is_loaded(
    splits: dict[str, Dataset], run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    """The checkpoint is missing: that would be told if it were looked for."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(photo)
    before = photo.read_bytes()
    (tmp_path / "notes.json").write_text("[{}]")
    (tmp_path / "results.json").mkdir()
    with pytest.raises(ValueError, match=r"`--output` is .*results.json, which is a folder; expected a file"):
        run()
    (tmp_path / "results.json").rmdir()
    for option in ("--picture", "--branch-picture"):
        for given, message in {
            photo: "photo.png, a file that was not drawn by this command; expected a new one",
            tmp_path / "corpus" / "new.png": "new.png, among the images of .*corpus",
            tmp_path / "new.jpg": "new.jpg; expected a file that ends in .png",
            photo / "new.png": r"below .*photo.png, which is a file",
        }.items():
            with pytest.raises(ValueError, match=f"`{option}` is .*{message}"):
                run(option, str(given))
    (tmp_path / "results.json").write_text("no json")
    with pytest.raises(ValueError, match=r"`--output` is .*results.json, which does not hold records"):
        run()
    assert photo.read_bytes() == before and (tmp_path / "results.json").read_text() == "no json"


def test_tables_and_records_come_task_by_task(
    checkpoint: HolisticCLIPModel,
    splits: dict[str, Dataset],
    run: Callable[..., list[Record]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = ["--tasks", "retrieval", "classification", "--templates", "plain"]
    with pytest.raises(ValueError, match="`classes` is 'mood'"):  # before anything is measured
        run(*tasks, "--classes", "mood")
    assert "==" not in capsys.readouterr().out and not (tmp_path / "results.json").exists()

    def fail(evaluation: object) -> list[Record]:
        raise ValueError("late")

    monkeypatch.setitem(TASKS, "classification", fail)
    with pytest.raises(ValueError, match="late"):
        run(*tasks, "--classes", "colour", "--picture", str(tmp_path / "grid.png"))
    assert "== retrieval, per perspective on corpus, test" in capsys.readouterr().out
    assert {record.task for record in load_records(tmp_path / "results.json")} == {"retrieval"}
    assert Image.open(tmp_path / "grid.png").width > 100
    run("--picture", str(tmp_path / "grid.png"))  # ours may be drawn again


@pytest.mark.parametrize("options", [["--tasks", "singing"], ["--protocols", "karpathy"], ["--readouts", "x"]])
def test_choices_are_named(
    options: list[str], run: Callable[..., list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*options)
    assert ended.value.code == 2 and options[1] in capsys.readouterr().err


def test_choices_are_those_of_the_package() -> None:
    """The command writes them down, so that its help imports no torch."""
    options = {
        field.name: typing.get_args(typing.get_args(hint)[0])
        for kind in (Texts, Masks)
        for field, hint in zip(dataclasses.fields(kind), typing.get_type_hints(kind).values(), strict=True)
        if typing.get_origin(hint) is tuple
    }
    assert options["protocols"] == RETRIEVAL_PROTOCOLS and options["readouts"] == READOUTS
    assert typing.get_args(Task) == tuple(TASKS) and Classes().neighbours == linear_probe.NEIGHBOURS
    assert typing.get_args(typing.get_type_hints(fit.Command)["fusion"]) == ("best", *FITTED, "current")
    hints = typing.get_type_hints(search.Index)
    assert typing.get_args(hints["vectors"]) == VECTORS and typing.get_args(hints["lookup"]) == LOOKUPS
    assert typing.get_args(hints["precision"]) == (AUTO, *PRECISIONS)
    assert typing.get_args(typing.get_type_hints(search.Export)["precision"]) == PRECISIONS
    assert caption.Server().timeout == Patience().timeout and caption.Server().attempts == Patience().attempts
    assert typing.get_args(typing.get_type_hints(caption.Server)["image_format"]) == tuple(sorted(IMAGE_FORMATS))
    settings, build = BuildSettings(), corpus_verb.BuildOptions()
    shared = {field.name for field in dataclasses.fields(settings)} & {
        field.name for field in dataclasses.fields(build)
    }
    assert {name: getattr(build, name) for name in shared} == {name: getattr(settings, name) for name in shared}
    assert (
        publish.Command(Path(), "").max_shard_size == MAX_SHARD_SIZE and publish.Command(Path(), "").revision == MAIN
    )


def test_data_that_is_not_there_is_named(
    checkpoint: HolisticCLIPModel, splits: dict[str, Dataset], run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`classes` is 'mood'; expected a perspective"):
        run("--tasks", "classification", "--classes", "mood")
    with pytest.raises(ValueError, match="benchmark is 'mnist'; expected one of coco"):
        run("--corpus", f"mnist={tmp_path}")
    with pytest.raises(ValueError, match="`templates` is 'mine'; expected one of plain"):
        run("--tasks", "classification", "--classes", "colour", "--templates", "mine")


def test_an_evaluation_in_shares_has_the_records_of_one_without(
    checkpoint: HolisticCLIPModel,
    splits: dict[str, Dataset],
    run: Callable[..., list[Record]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = ["--tasks", "retrieval", "classification", "probes", "--classes", "colour", "--templates", "plain"]
    tasks += ["--neighbours", "3", "--batch-size", "3"]
    expected = told(run(*tasks))
    (tmp_path / "results.json").unlink()
    encoded = ["--encoded", str(tmp_path / "encoded")]
    for index in range(2):
        parse("evaluate", [*common(tmp_path), *tasks, *encoded, "--shard", f"{index}/2"])()
        assert "batches are in" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        # Only the classes' own texts are left to encode.
        patch.setattr(HolisticCLIPModel, "get_image_features", None)
        assert told(run(*tasks, *encoded)) == expected


def test_answers_are_encoded_in_shares_as_retrieval_is(
    checkpoint: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    splits: dict[str, Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, its_processor = load_checkpoint(tmp_path / "tiny")
    scores = {"fused": ScoreCalibration(0.0, 0.0, 0.0, 0.0, 50, 8, 0.5)}
    checkpoint_of = fingerprint(model, its_processor, with_fusion=False)
    found = Calibration(checkpoint_of, fusion_facts(model), "colours", "validation", scores)
    save_calibration(tmp_path / "tiny" / CALIBRATION_FILE, found)
    said = []
    for task in ("retrieval", "answers"):
        shares = ["--tasks", task, "--encoded", str(tmp_path / task), "--shard", "1/2", "--batch-size", "3"]
        parse("evaluate", [*common(tmp_path), *shares])()
        said.append(capsys.readouterr().out.partition(" batches")[0])
    assert said == ["4 of 8", "4 of 8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/2"], "`--encoded` is missing; `--shard 0/2` expects a folder"),
        (["--shard", "2/2", "--encoded", "e"], "`shard` is '2/2'; expected i/n"),
        (
            ["--shard", "0/2", "--encoded", "e", "--tasks", "segmentation", "--masks", "voc21=v"],
            "`--tasks` has segmentation, which `--shard 0/2` does not divide",
        ),
        (
            ["--shard", "0/2", "--encoded", "e", "--tasks", "cases", "--cases", "coco-facet=c"],
            "`--tasks` has cases, which `--shard 0/2` does not divide",
        ),
    ],
)
def test_shares_that_cannot_be_encoded_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    corpus = [] if "--tasks" in options else ["--corpus", "emoji"]
    with pytest.raises(ValueError, match=message):
        parse("evaluate", ["--model", "tiny", "--output", str(tmp_path / "r.json"), *corpus, *options])()
