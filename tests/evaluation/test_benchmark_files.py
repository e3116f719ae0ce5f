"""The field's benchmarks, read from tiny files of the layouts that their authors publish."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf.corpus.build import count_perspectives
from holistic_clip_hf.evaluation.benchmarks import (
    RETRIEVAL,
    SEGMENTATION,
    SHAREGPT4V_FILE,
    classify_by,
    imagenet_classes,
    open_classification,
    open_retrieval,
    open_segmentation,
)


def write_image(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)


def write_mask(path: Path, values: list[list[int]], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.array(values, dtype=np.uint8))
    if palette:
        mask = mask.convert("P")
        mask.putdata([value for row in values for value in row])
        mask.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
    mask.save(path)


def write_karpathy(root: Path, name: str, with_path: bool) -> None:
    images = []
    for index, split in enumerate(["train", "test", "test", "val"]):
        entry = {"filename": f"{index}.jpg", "split": split}
        entry["sentences"] = [{"raw": f"caption {index} {number} "} for number in range(6 if index == 1 else 5)]
        if with_path:
            entry["filepath"] = "val2014"
        images.append(entry)
        write_image(root / ("val2014" if with_path else "flickr30k-images") / f"{index}.jpg")
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": images}))


@pytest.mark.parametrize(("name", "with_path"), [("coco", True), ("flickr30k", False)])
def test_karpathys_split_has_the_first_five_captions(tmp_path: Path, name: str, with_path: bool) -> None:
    write_karpathy(tmp_path, name, with_path)
    corpus = open_retrieval(name, tmp_path)
    assert corpus["image_id"] == ["1", "2"] and count_perspectives(corpus) == {"short": 10}
    assert [caption["text"] for caption in corpus[0]["captions"]] == [f"caption 1 {number}" for number in range(5)]
    assert corpus[0]["captions"][4]["source"] == f"{name}-4" and corpus[0]["image"].size == (6, 4)
    assert open_retrieval(name, tmp_path, split="val")["image_id"] == ["3"]
    with pytest.raises(ValueError, match="no image of the split 'dev'"):
        open_retrieval(name, tmp_path, split="dev")
    (tmp_path / ("val2014" if with_path else "flickr30k-images") / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images of .* are missing, such as .*2\.jpg"):
        open_retrieval(name, tmp_path)


def test_long_captions(tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / f"urban/image/{number}.jpg")
        (tmp_path / "urban/caption").mkdir(exist_ok=True)
        (tmp_path / f"urban/caption/{number}.txt").write_text(f"Street {number}.\n")
    assert open_retrieval("urban1k", tmp_path / "urban")[1]["captions"] == [
        {"perspective": "detail", "text": "Street 1.", "source": "urban1k"}
    ]
    write_image(tmp_path / "docci/images/test_00000.jpg")
    lines = [
        {
            "example_id": "test_00000",
            "split": "test",
            "image_file": "test_00000.jpg",
            "description": "A cat. Sat.",
        },
        {"example_id": "train_00000", "split": "train", "image_file": "train_00000.jpg", "description": "A dog."},
    ]
    (tmp_path / "docci/docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, lines)))
    (row,) = open_retrieval("docci", tmp_path / "docci")
    assert row["image_id"] == "test_00000" and row["captions"][0]["text"] == "A cat. Sat."
    write_image(tmp_path / "share/coco/train2017/0.jpg")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A long answer."}]
    entry = {"id": "0", "image": "coco/train2017/0.jpg", "conversations": turns}
    (tmp_path / "share" / SHAREGPT4V_FILE).write_text(json.dumps([entry]))
    (row,) = open_retrieval("sharegpt4v", tmp_path / "share")
    assert row["captions"] == [{"perspective": "detail", "text": "A long answer.", "source": "sharegpt4v"}]


CLASSES = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark"}


def test_an_entry_without_an_answer_is_named(tmp_path: Path) -> None:
    entry = {"id": "0", "image": "coco/train2017/0.jpg", "conversations": [{"from": "human", "value": "What?"}]}
    (tmp_path / SHAREGPT4V_FILE).write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="coco/train2017/0.jpg has no turn from 'gpt'"):
        open_retrieval("sharegpt4v", tmp_path)


def test_classes_keep_the_order_of_their_synsets(tmp_path: Path) -> None:
    synsets = list(CLASSES)
    for synset in synsets:
        write_image(tmp_path / f"val/{synset}/x.JPEG")
        write_image(tmp_path / f"train/{synset}/x.JPEG")
        write_image(tmp_path / f"train/{synset}/y.JPEG")
    (tmp_path / "val/n01440764/readme.txt").write_text("no image")
    found = open_classification("imagenet", tmp_path, classes=CLASSES)
    assert found.dataset["label"] == [0, 1, 2] and found.class_names == list(CLASSES.values())
    assert open_classification("imagenet", tmp_path, split="train").dataset["label"] == [0, 0, 1, 1, 2, 2]
    for synset in (synsets[2], synsets[1]):
        write_image(tmp_path / f"imagenet-a/{synset}/y.jpg")
    found = open_classification("imagenet-a", tmp_path)
    assert found.dataset["label"] == [0, 1] and found.class_names == ["goldfish", "great white shark"]
    for index in ("0", "2", "10"):
        write_image(tmp_path / f"imagenetv2-matched-frequency-format-val/{index}/{index}.jpeg")
    found = open_classification("imagenet-v2", tmp_path)
    assert found.class_names == ["tench", "great white shark", "brambling"]
    assert [Path(image.filename).stem for image in found.dataset["image"]] == ["0", "2", "10"]
    with pytest.raises(ValueError, match="`split` is 'train'; expected one of test"):
        open_classification("imagenet-v2", tmp_path, split="train")
    with pytest.raises(ValueError, match="folder '10', which is not one of the 3 classes"):
        open_classification("imagenet-v2", tmp_path, classes=CLASSES)
    (tmp_path / "imagenet-a/kittens").mkdir()
    with pytest.raises(ValueError, match="folder 'kittens', which is not one of the 1000 classes"):
        open_classification("imagenet-a", tmp_path)
    (tmp_path / "imagenet-a/kittens").rename(tmp_path / "imagenet-a" / synsets[0])
    with pytest.raises(ValueError, match="n01440764 holds no image"):
        open_classification("imagenet-a", tmp_path)
    with pytest.raises(ValueError, match="imagenet-r has no folders of classes"):
        open_classification("imagenet-r", tmp_path)


def test_imagenet_has_a_thousand_names_in_order() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1_000 and list(classes) == sorted(classes) and all(classes.values())
    # Known by heart to everybody who has seen ImageNet's indices.
    names = list(classes.values())
    assert (names[0], names[207], names[281], names[985]) == ("tench", "Golden Retriever", "tabby cat", "daisy")


def test_a_corpus_has_classes_by_perspective_or_column(corpus: Dataset) -> None:
    first, second = corpus.select(range(4)), corpus.select(range(4, 8))
    train, test = classify_by("colour", first, second)
    assert train.class_names == test.class_names == ["all blue", "all green", "all red", "all yellow"]
    assert train.dataset["label"] == [2, 2, 1, 1] and test.dataset["label"] == [0, 0, 3, 3]
    (found,) = classify_by("image_id", corpus)
    assert found.class_names[0] == "blue circle" and sorted(found.dataset["label"]) == list(range(8))
    without = corpus.map(lambda row: {"captions": row["captions"][: 3 if row["image_id"].startswith("red") else 1]})
    (found,) = classify_by("shape", without)
    assert found.num_left_out == 6 and len(found.dataset) == 2 == len(found.class_names)
    with pytest.raises(
        ValueError, match=r"`classes` is 'mood'; expected a perspective of the corpus \(colour, shape, short"
    ):
        classify_by("mood", corpus)
    twice = corpus.map(lambda row: {"captions": [*row["captions"], {**row["captions"][0], "text": "else"}]})
    with pytest.raises(ValueError, match="red-square has 2 different captions of 'short'"):
        classify_by("short", twice)


def test_voc_with_and_without_background(tmp_path: Path) -> None:
    write_image(tmp_path / "JPEGImages/a.jpg")
    write_mask(tmp_path / "SegmentationClass/a.png", [[0, 1, 20], [255, 0, 2]], palette=True)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    with_background, without = open_segmentation("voc21", tmp_path), open_segmentation("voc20", tmp_path)
    assert (len(with_background.class_names), with_background.background) == (21, 0)
    assert np.asarray(with_background.dataset[0]["mask"]).tolist() == [[0, 1, 20], [255, 0, 2]]
    assert (len(without.class_names), without.background, without.class_names[0]) == (20, None, "aeroplane")
    assert np.asarray(without.dataset[0]["mask"]).tolist() == [[255, 0, 19], [255, 255, 1]]


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    write_image(tmp_path / "images/validation/a.jpg")
    write_mask(tmp_path / "annotations/validation/a.png", [[0, 1], [2, 2]])
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    lines = ["1\t0.1\t9\t9\t1\twall", "2\t0.1\t9\t9\t1\tbuilding, edifice"]
    (tmp_path / "objectInfo150.txt").write_text("\n".join([head, *lines]))
    found = open_segmentation("ade20k", tmp_path)
    assert found.class_names == ["wall", "building"]
    (tmp_path / "images/validation/a.jpg").rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="images/validation has no images"):
        open_segmentation("ade20k", tmp_path)
    (tmp_path / "a.jpg").rename(tmp_path / "images/validation/a.jpg")
    assert np.asarray(found.dataset[0]["mask"]).tolist() == [[255, 0], [1, 1]]


def test_coco_stuff_leaves_out_what_nobody_annotated(tmp_path: Path) -> None:
    write_image(tmp_path / "val2017/a.jpg")
    # Values are indices less one: 0 person, 11 street sign (unused), 12 stop sign, 181 wood.
    write_mask(tmp_path / "stuffthingmaps/val2017/a.png", [[0, 11], [12, 181], [255, 255]])
    (tmp_path / "labels.txt").write_text("\n".join(f"{index}: thing {index}" for index in range(183)))
    found = open_segmentation("coco-stuff", tmp_path)
    assert len(found.class_names) == 171 and found.class_names[:1] == ["thing 1"]
    assert np.asarray(found.dataset[0]["mask"]).tolist() == [[0, 255], [11, 170], [255, 255]]


def test_a_line_separator_of_unicode_ends_no_class(tmp_path: Path) -> None:
    write_image(tmp_path / "images/validation/a.jpg")
    write_mask(tmp_path / "annotations/validation/a.png", [[1, 2], [2, 2]])
    names = ["wall\u2028of bricks", "building"]
    lines = ["head", *(f"{number}\t0.1\t9\t9\t1\t{name}" for number, name in enumerate(names, 1))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines), encoding="utf-8")
    assert open_segmentation("ade20k", tmp_path).class_names == names
    write_image(tmp_path / "val2017/a.jpg")
    write_mask(tmp_path / "stuffthingmaps/val2017/a.png", [[0]])
    (tmp_path / "labels.txt").write_text("0: unlabeled\n1: a\x85b\n2: c\n", encoding="utf-8")
    assert open_segmentation("coco-stuff", tmp_path).class_names == ["a\x85b", "c"]


@pytest.mark.parametrize("name", sorted(RETRIEVAL))
def test_an_empty_root_says_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is missing; docs|holds no image"):
        open_retrieval(name, tmp_path)


@pytest.mark.parametrize("name", sorted(SEGMENTATION))
def test_an_empty_root_of_masks_says_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is missing; docs/evaluation.md says"):
        open_segmentation(name, tmp_path)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for open_it in (open_retrieval, open_segmentation):
        with pytest.raises(ValueError, match="benchmark is 'mnist'; expected one of "):
            open_it("mnist", tmp_path)
    with pytest.raises(ValueError, match="benchmark is 'mnist'; expected one of imagenet"):
        open_classification("mnist", tmp_path)
