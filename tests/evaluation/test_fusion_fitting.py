"""Fitting of fusions, on embeddings made so that the right answer is known."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.checkpoint_files import write_checkpoint
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import build_corpus, load_corpus
from holistic_clip_hf.evaluation import fusion_fitting
from holistic_clip_hf.evaluation.calibration import fusion_facts, load_calibration
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.evaluation.fusion_fitting import (
    fit_best_fusion,
    fit_branch_weights,
    fit_fusion,
    fit_fusion_scale,
    fit_router,
)
from holistic_clip_hf.evaluation.records import capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, measure_retrieval
from holistic_clip_hf.locks import InUseError, hold_lock
from holistic_clip_hf.publishing.checkpoint import require_checkpoint_folder

MakeModel = Callable[..., HolisticCLIPModel]
NAMES = ["short", "style", "nouns"]
WIDTH = 16
NUM_IMAGES = 40


def corpus_of_known_branches(seed: int = 0) -> EmbeddedCorpus:
    """Branch h holds the image's own caption of perspective h, a half of the space is the perspective's mark."""
    generator = torch.Generator().manual_seed(seed)
    marks = F.normalize(torch.randn(3, WIDTH // 2, generator=generator), dim=-1)
    captions = {name: [[f"{name} {image}"] for image in range(NUM_IMAGES)] for name in NAMES}
    embeds, branches = {}, torch.randn(NUM_IMAGES, 3, WIDTH, generator=generator)
    for branch, name in enumerate(NAMES):
        for image in range(NUM_IMAGES):
            content = F.normalize(torch.randn(WIDTH // 2, generator=generator), dim=-1)
            embeds[f"{name} {image}"] = F.normalize(torch.cat([marks[branch], content]), dim=-1)
            branches[image, branch, : WIDTH // 2] = 0
            branches[image, branch, WIDTH // 2 :] = content
    return EmbeddedCorpus(F.normalize(branches, dim=-1), captions, embeds)


def recall(model: HolisticCLIPModel, corpus: EmbeddedCorpus) -> float:
    provenance = capture_provenance(model="known", dataset="known", split="test", seed=0)
    found = [
        record.value
        for record in measure_retrieval(model, corpus, provenance=provenance, ks=(1,))
        if record.label == "recall@1" and record.details["branch"] == "fused"
    ]
    return sum(found) / len(found)


def test_a_router_sends_each_text_to_its_branch(make_model: MakeModel, tmp_path: Path) -> None:
    model, corpus = make_model(perspectives=NAMES), corpus_of_known_branches()
    before = recall(model, corpus)
    fit_fusion(model, corpus, "routed")
    texts = corpus.embeds_of(list(corpus.text_embeds))
    chosen = model.branch_fusion.router(texts).argmax(dim=1).tolist()
    assert chosen == [branch for branch in range(3) for _ in range(NUM_IMAGES)]
    assert recall(model, corpus) > before + 0.1
    model.save_pretrained(tmp_path)
    assert recall(HolisticCLIPModel.from_pretrained(tmp_path), corpus) == recall(model, corpus)


def test_the_router_is_at_the_minimum_of_its_loss() -> None:
    """The gradient, written out, vanishes: softmax minus target, balanced, plus the weight itself."""
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(30, 4, generator=generator), dim=-1).double()
    targets = torch.tensor([0] * 20 + [2] * 10)  # nothing is said of branch 1
    router = fit_router(texts.float(), targets, num_branches=3).requires_grad_(False)
    weight = router.weight.double() * 2  # a router takes vectors of length sqrt(4)
    shares = (texts @ weight.T + router.bias.double()).softmax(dim=1)
    balance = torch.tensor([30 / (2 * 20)] * 20 + [30 / (2 * 10)] * 10, dtype=torch.float64)
    errors = balance[:, None] * (shares - F.one_hot(targets, 3))
    np.testing.assert_allclose(errors.T @ texts + weight, 0, atol=2e-3)
    np.testing.assert_allclose(errors.sum(dim=0), 0, atol=2e-3)


def test_weights_go_to_the_branch_that_knows(make_model: MakeModel) -> None:
    """Texts agree with branch 1 alone; the others are noise."""
    generator = torch.Generator().manual_seed(0)
    correct = torch.eye(NUM_IMAGES, dtype=torch.bool)
    similarities = 0.1 * torch.randn(NUM_IMAGES, NUM_IMAGES, 3, generator=generator, dtype=torch.float64)
    similarities[..., 1] += 0.3 * correct
    weights = fit_branch_weights([similarities], [correct])
    assert sum(weights) == pytest.approx(1.0) and weights[1] > 0.8
    swapped = fit_branch_weights([similarities[..., [1, 0, 2]]], [correct])
    np.testing.assert_allclose(swapped, [weights[1], weights[0], weights[2]], atol=1e-3)


def test_no_other_weights_have_a_lower_loss() -> None:
    """A grid over the simplex and the temperature, by plain loops."""
    generator = torch.Generator().manual_seed(1)
    correct = torch.rand(12, 15, generator=generator) < 0.2
    correct[:, 0] = True
    similarities = torch.randn(12, 15, 2, generator=generator, dtype=torch.float64) * 0.2
    similarities += torch.tensor([0.3, 0.5]) * correct[..., None]

    def loss(weights: Tensor) -> float:
        scores = (similarities * weights).sum(dim=-1)
        return float(-(scores.exp() * correct).sum(dim=1).div(scores.exp().sum(dim=1)).log().mean())

    found = fit_branch_weights([similarities], [correct])
    lowest = min(
        (loss(scale * torch.tensor([share, 1 - share])), share)
        for share in np.linspace(0, 1, 201)
        for scale in np.linspace(0.5, 60, 120)
    )
    assert found[0] == pytest.approx(lowest[1], abs=0.01)


def test_the_scale_is_high_where_the_best_branch_is_right_and_low_where_it_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    correct = torch.eye(NUM_IMAGES, dtype=torch.bool)
    noise = 0.05 * torch.randn(NUM_IMAGES, NUM_IMAGES, 3, generator=generator, dtype=torch.float64)
    one_knows = noise.clone()
    one_knows[..., 0] += 0.5 * correct
    all_know = noise + 0.1 * correct[..., None]
    assert fit_fusion_scale([one_knows], [correct]) > 10 > 3 > fit_fusion_scale([all_know], [correct])


def plain_precision(corpus: EmbeddedCorpus, fuse: Callable[[list[float]], float]) -> float:
    """Mean average precision of both halves, each text having one right image: 1 / (1 + rank)."""
    found = []
    for start in range(2):
        images = range(start, NUM_IMAGES, 2)
        for owned in corpus.captions.values():
            for right in images:
                text = corpus.text_embeds[owned[right][0]]
                scores = {image: fuse((corpus.branch_embeds[image] @ text).tolist()) for image in images}
                found.append(1 / sum(score >= scores[right] for score in scores.values()))
    return sum(found) / len(found)


def test_the_best_fusion_is_the_one_that_finds_most(make_model: MakeModel) -> None:
    model, corpus = make_model(perspectives=NAMES), corpus_of_known_branches()
    found = fit_best_fusion(model, corpus, corpus)
    assert set(found) == {"centroid", "mean", "weighted", "routed", "max", "softmax"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert model.config.fusion == next(iter(found)) == "max"  # each text is an exact copy of one branch
    assert found["max"] == pytest.approx(plain_precision(corpus, max)) == 1
    assert found["mean"] == pytest.approx(plain_precision(corpus, sum), abs=1e-6) and found["mean"] < 0.9
    assert model.config.branch_weights is None and model.branch_fusion.router is None

    generator = torch.Generator().manual_seed(1)
    noise = 0.03 * torch.randn(NUM_IMAGES, 3, WIDTH, generator=generator)  # one branch knows, two are loud
    noise[:, 1] += 0.2 * torch.stack([corpus.text_embeds[f"style {image}"] for image in range(NUM_IMAGES)])
    noise[:, [0, 2]] *= 10
    known = EmbeddedCorpus(noise, {"style": corpus.captions["style"]}, corpus.text_embeds)
    found = fit_best_fusion(model, known, corpus)
    assert next(iter(found)) == model.config.fusion == "weighted" and found["weighted"] > found["max"] + 0.1
    assert model.config.branch_weights[1] > 0.9  # fitted anew, on all
    with pytest.raises(ValueError, match="has one branch; expected several"):
        fit_best_fusion(make_model(perspectives=["all"], vision={"num_branches": 1}), known, corpus)


@pytest.mark.parametrize("fusion", ["weighted", "softmax"])
def test_what_is_fitted_is_kept_with_the_checkpoint(make_model: MakeModel, tmp_path: Path, fusion: str) -> None:
    model, corpus = make_model(perspectives=NAMES), corpus_of_known_branches()
    fit_fusion(model, corpus, fusion)
    assert model.config.fusion == fusion
    model.save_pretrained(tmp_path)
    loaded = HolisticCLIPModel.from_pretrained(tmp_path)
    assert loaded.config.branch_weights == model.config.branch_weights
    assert loaded.config.fusion_scale == model.config.fusion_scale
    assert recall(loaded, corpus) == recall(model, corpus)


def test_nothing_of_an_earlier_fit_is_saved(make_model: MakeModel, tmp_path: Path) -> None:
    model, corpus = make_model(perspectives=NAMES), corpus_of_known_branches()
    for fusion in ("routed", "softmax", "weighted"):
        fit_fusion(model, corpus, fusion)
        model.save_pretrained(tmp_path / fusion)
        report = HolisticCLIPModel.from_pretrained(tmp_path / fusion, output_loading_info=True)[1]
        assert not report["unexpected_keys"] and not report["missing_keys"], fusion


def test_a_rare_perspective_is_drawn_with_its_images(monkeypatch: pytest.MonkeyPatch, make_model: MakeModel) -> None:
    """One image of forty owns the only text of `nouns`; with ten drawn, it is among them."""
    monkeypatch.setattr(fusion_fitting, "MOST_IMAGES", 10)
    corpus = corpus_of_known_branches()
    rare = {**corpus.captions, "nouns": [[] for _ in range(NUM_IMAGES - 1)] + [["nouns 39"]]}
    for seed in range(5):
        model = make_model(perspectives=NAMES)
        fit_fusion(model, EmbeddedCorpus(corpus.branch_embeds, rare, corpus.text_embeds), "weighted", seed=seed)
        assert sum(model.config.branch_weights) == pytest.approx(1.0)


def test_misuse_is_refused(make_model: MakeModel) -> None:
    corpus = corpus_of_known_branches()
    with pytest.raises(ValueError, match="`fusion` is 'max'; expected one of weighted"):
        fit_fusion(make_model(perspectives=NAMES), corpus, "max")
    with pytest.raises(ValueError, match="has captions of short, style, nouns; the branches are a, b, c"):
        fit_fusion(make_model(perspectives=["a", "b", "c"]), corpus, "routed")
    without_images = EmbeddedCorpus(torch.empty(0, 3, WIDTH), corpus.captions, corpus.text_embeds)
    with pytest.raises(ValueError, match="encoded without images"):
        fit_fusion(make_model(perspectives=NAMES), without_images, "softmax")
    with pytest.raises(ValueError, match="encoded without images"):
        recall(make_model(perspectives=NAMES), without_images)


def test_the_verb_fits_a_checkpoint_in_place_if_told(
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["short", "colour"]
    make_model(perspectives=names, vision={"num_branches": 2}).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    features = Features({**corpus.features, "part": Value("string")})
    few = [(corpus[index % 8], "train" if index % 2 else "validation") for index in range(21)]
    rows = [{**row, "image_id": f"{place}", "part": part} for place, (row, part) in enumerate(few)]
    build_corpus(tmp_path / "corpus", {"all": lambda: rows}, features, fingerprint="1")
    for fusion in ("weighted", "routed"):
        arguments = ["--model", str(tmp_path / "checkpoint"), "--fusion", fusion, "--split-column", "part"]
        arguments += ["--corpus", str(tmp_path / "corpus")]
        with pytest.raises(ValueError, match="`output` is missing; .* or change .*checkpoint itself with `replace`"):
            parse("fit", arguments)()
        parse("fit", [*arguments, "--replace"])()
        loaded = HolisticCLIPModel.from_pretrained(tmp_path / "checkpoint")
        assert loaded.config.fusion == fusion
        assert (loaded.config.branch_weights is None) == (fusion == "routed")
    assert loaded.branch_fusion.router.weight.any()
    told = capsys.readouterr().out
    assert "had fusion='centroid', branch_weights=None" in told and "had fusion='weighted', branch_weights=[" in told
    with pytest.raises(ValueError, match="which holds a checkpoint; expected a new folder. .*, or give `replace`"):
        parse("fit", [*arguments, "--output", str(tmp_path / "checkpoint")])()


def test_the_verb_calibrates_what_it_can(
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "checkpoint"
    for part in (make_model(perspectives=["short", "colour"], vision={"num_branches": 2}), processor):
        part.save_pretrained(checkpoint)
    features = Features({**corpus.features, "part": Value("string")})
    rows = [{**corpus[place % 8], "image_id": f"{place}", "part": "validation"} for place in range(16)]
    rows += [{**corpus[place % 8], "image_id": f"t{place}", "part": "train"} for place in range(12)]
    build_corpus(tmp_path / "corpus", {"all": lambda: rows}, features, fingerprint="1")
    arguments = ["--model", str(checkpoint), "--corpus", str(tmp_path / "corpus"), "--split-column", "part"]
    before = contents(checkpoint)
    with pytest.raises(ValueError, match="has too few texts to calibrate any score; expected 40 or more"):
        parse("fit", [*arguments, "--fusion", "current", "--replace"])()
    assert contents(checkpoint) == before
    parse("fit", [*arguments, "--output", str(tmp_path / "best")])()  # the fusion is fitted all the same
    told = capsys.readouterr().out
    assert "the best of 6 by mean average precision" in told and "Not calibrated: fused, short, colour. " in told
    assert load_calibration(tmp_path / "best") is None
    monkeypatch.setattr("holistic_clip_hf.evaluation.calibration.FEWEST_TEXTS", 5)
    parse("fit", [*arguments, "--fusion", "current", "--replace"])()
    told = capsys.readouterr().out
    assert "Scores are calibrated on validation: fused (" in told and "short (8 texts)" in told
    calibration, model = load_calibration(checkpoint), HolisticCLIPModel.from_pretrained(checkpoint)
    assert calibration is not None and calibration.fusion == fusion_facts(model)
    assert calibration.checkpoint == fingerprint(model, processor, with_fusion=False)
    assert (calibration.dataset, calibration.split) == ("corpus", "validation")
    parse("fit", [*arguments, "--fusion", "weighted", "--calibrate-on", "nowhere", "--replace"])()
    assert "Scores are not calibrated: No row of" in capsys.readouterr().out
    assert load_calibration(checkpoint) is None  # that of the former fusion is gone


@pytest.mark.parametrize("replace", [False, True])
def test_a_disk_that_fills_while_saving_leaves_no_torn_checkpoint(
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace: bool,
) -> None:
    checkpoint, output = tmp_path / "checkpoint", tmp_path / ("checkpoint" if replace else "fitted")
    make_model(perspectives=["short", "colour"], vision={"num_branches": 2}).save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    (checkpoint / "results.json").write_text("[]")
    rows = [{**corpus[index % 8], "image_id": str(index)} for index in range(12)]
    build_corpus(tmp_path / "corpus", {"all": lambda: rows}, corpus.features, fingerprint="1")
    at = ["--model", str(checkpoint), "--corpus", str(tmp_path / "corpus"), "--fusion", "weighted"]
    fit = parse("fit", [*at, "--split-column", "image_id", "--split", "0", "--output", str(output), "--replace"])
    monkeypatch.setattr("holistic_clip_hf.corpus.build.open_split", lambda *_, **__: load_corpus(tmp_path / "corpus"))
    before = contents(output)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(HolisticCLIPProcessor, "save_pretrained", fail)  # after the weights were written
        with pytest.raises(OSError, match="The disk of .* is full while writing config.json"):
            fit()
    assert contents(output) == before
    fit()
    assert HolisticCLIPModel.from_pretrained(output).config.fusion == "weighted"
    assert HolisticCLIPProcessor.from_pretrained(output)
    assert (output / "results.json").exists() == replace
    assert not [name for name in contents(output) if name.startswith(".")]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_a_killed_process_was_saving_is_replaced(make_model: MakeModel, tmp_path: Path) -> None:
    """Killed while files came into place: weights of another number of shards are there, and no configuration."""
    folder = tmp_path / "checkpoint"
    partial = folder / ".folder.1.partial"
    partial.mkdir(parents=True)
    (partial / "config.json").write_text("{}")
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "loss_holistic_clip.py"):
        (folder / name).write_text("of another")
    require_checkpoint_folder(folder)
    model = make_model(perspectives=NAMES)
    with write_checkpoint(folder) as new:
        model.save_pretrained(new)
    assert not partial.exists() and not list(folder.glob("model*-of-*")) and not list(folder.glob("*.index.json"))
    assert torch.equal(HolisticCLIPModel.from_pretrained(folder).logit_scale, model.logit_scale)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="which holds .*; expected a new or empty folder"):
        require_checkpoint_folder(folder)


def test_a_fit_on_a_handful_of_rows_is_refused(make_model: MakeModel, corpus: Dataset, tmp_path: Path) -> None:
    make_model(perspectives=["short", "colour"], vision={"num_branches": 2}).save_pretrained(tmp_path / "checkpoint")
    rows = [{**row, "part": "validation"} for row in corpus]
    features = Features({**corpus.features, "part": Value("string")})
    build_corpus(tmp_path / "corpus", {"all": lambda: rows}, features, fingerprint="1")
    arguments = [
        "--model",
        str(tmp_path / "checkpoint"),
        "--corpus",
        str(tmp_path / "corpus"),
        "--split-column",
        "part",
    ]
    fit = parse("fit", [*arguments, "--fusion", "weighted", "--output", str(tmp_path / "new")])
    with pytest.raises(ValueError, match="`split` is validation, .* has 8 rows; expected 10 or more"):
        fit()
    assert not (tmp_path / "new").exists()
    with (
        hold_lock(tmp_path / "new" / ".lock"),
        pytest.raises(InUseError, match=f"new is being written by process {os.getpid()}"),
    ):
        fit()
