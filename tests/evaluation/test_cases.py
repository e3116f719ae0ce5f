"""Cases of benchmarks: tiny files in the layouts of their authors, and ranks by a plain loop over dot products."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.benchmarks import SUGAR_CREPE, open_cases, open_retrieval
from holistic_clip_hf.evaluation.cases import measure_cases
from holistic_clip_hf.evaluation.encoding import encode_images, encode_texts
from holistic_clip_hf.evaluation.records import FUSED, Record, capture_provenance

PROVENANCE = capture_provenance(model="tiny", dataset="cases", split="test", seed=0)
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


def write_images(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (6, 4), colour).save(folder / f"{number:012d}.jpg")
    return [f"{folder.name}/{number:012d}.jpg" for number in range(len(COLOURS))]


def write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def write_facets(root: Path) -> None:
    images = write_images(root / "val2017")
    told = {"COCO_object": [("red", [0, 1, 2]), ("blue", [2, 0, 5])], "mix_weather": [("red", [4, 3])]}
    for kind, cases in told.items():
        entries = [
            {
                "qry_text": f"Find me an image that contains any {word}.\n",
                "qry_img_path": "",
                "tgt_text": "<|image_1|> Represent the given image.",
                "tgt_img_path": [images[place] for place in places],
            }
            for word, places in cases
        ]
        (root / f"{kind}_retrieval.json").write_text(json.dumps(entries))


def test_coco_facet_names_the_right_image_first(tmp_path: Path) -> None:
    write_facets(tmp_path)
    found = open_cases("coco-facet", tmp_path)
    assert found.direction == "text_to_image"
    assert found.texts == [f"Find me an image that contains any {word}." for word in ("red", "blue")]
    names = [Path(image.filename).name for image in found.dataset["image"]]
    cases = [
        (case.kind, found.texts[case.query].split()[-1], [int(names[row][:12]) for row in case.candidates])
        for case in found.cases
    ]
    assert cases == [
        ("COCO_object", "red.", [0, 1, 2]),
        ("COCO_object", "blue.", [2, 0, 5]),
        ("mix_weather", "red.", [4, 3]),
    ]


def test_sugar_crepe_and_negbench_put_the_right_text_first(tmp_path: Path) -> None:
    write_images(tmp_path / "val2017")
    for number, kind in enumerate(SUGAR_CREPE):
        entry = {"filename": f"{number % 6:012d}.jpg", "caption": f"right {kind}", "negative_caption": f"wrong {kind}"}
        (tmp_path / f"{kind}.json").write_text(json.dumps({"0": entry}))
    found = open_cases("sugar-crepe", tmp_path)
    assert found.direction == "image_to_text" and [case.kind for case in found.cases] == list(SUGAR_CREPE)
    assert [[found.texts[text] for text in case.candidates] for case in found.cases] == [
        [f"right {kind}", f"wrong {kind}"] for kind in SUGAR_CREPE
    ]
    head = ["image_path", *(f"caption_{number}" for number in range(4)), "correct_answer", "correct_answer_template"]
    rows = [
        ["/data/of/others/000000000003.jpg", "a", "b", "c, d", "e", "2", "hybrid"],
        ["000000000001.jpg", "a", "f", "g", "h", "0", "negative"],
    ]
    write_table(tmp_path / "COCO_val_mcq_llama3.1_rephrased.csv", head, rows)
    found = open_cases("negbench-coco", tmp_path)
    told = [(case.kind, [found.texts[text] for text in case.candidates]) for case in found.cases]
    assert told == [("hybrid", ["c, d", "a", "b", "e"]), ("negative", ["a", "f", "g", "h"])]
    assert [Path(image.filename).stem[-1] for image in found.dataset["image"]] == ["3", "1"]
    (tmp_path / "val2017/000000000003.jpg").rename(tmp_path / "moved.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 images of negbench-coco are missing, such as .*000000000003\.jpg"):
        open_cases("negbench-coco", tmp_path)
    with pytest.raises(ValueError, match="VOC2007_mcq_llama3.1_rephrased.csv is missing"):
        open_cases("negbench-voc", tmp_path)
    with pytest.raises(ValueError, match="'coco'; expected one of coco-facet, sugar-crepe"):
        open_cases("coco", tmp_path)
    with pytest.raises(ValueError, match=r"has no \*_retrieval.json"):
        open_cases("coco-facet", tmp_path)


def test_negated_captions_are_a_corpus(tmp_path: Path) -> None:
    write_images(tmp_path / "val2017")
    path = tmp_path / "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
    write_table(path, ["filepath", "captions"], [["x/000000000002.jpg", "['no dog, a cat', \"a cat's bed\"]"]])
    (row,) = open_retrieval("negbench", tmp_path)
    assert [caption["text"] for caption in row["captions"]] == ["no dog, a cat", "a cat's bed"]
    assert row["image_id"] == "000000000002" and row["captions"][1]["source"] == "negbench-1"
    write_table(path, ["filepath", "captions"], [["x/000000000002.jpg", "__import__('os').getcwd()"]])
    with pytest.raises(ValueError, match="row 0: `captions` is not a list of texts"):
        open_retrieval("negbench", tmp_path)


def by_key(records: list[Record]) -> dict[tuple[str, str, str], Record]:
    return {(str(each.details["kind"]), str(each.details["branch"]), each.label): each for each in records}


@pytest.mark.parametrize("by_text", [True, False])
def test_ranks_are_those_of_a_plain_loop(
    by_text: bool, tmp_path: Path, make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor
) -> None:
    model = make_model()
    if by_text:
        write_facets(tmp_path)
        benchmark = open_cases("coco-facet", tmp_path)
    else:
        write_images(tmp_path / "val2017")
        for number, kind in enumerate(SUGAR_CREPE):
            entry = {"filename": f"{number % 6:012d}.jpg", "caption": f"red {kind}", "negative_caption": f"dog {kind}"}
            (tmp_path / f"{kind}.json").write_text(json.dumps({"0": entry}))
        benchmark = open_cases("sugar-crepe", tmp_path)
    found = by_key(measure_cases(model, processor, benchmark, provenance=PROVENANCE))
    images = encode_images(model, processor, benchmark.dataset, batch_size=2).branch_embeds.double()
    texts = encode_texts(model, processor, benchmark.texts, batch_size=2).double()
    for branch, name in enumerate([*model.config.perspectives, FUSED]):
        seen = images.mean(dim=1) if name == FUSED else images[:, branch]
        for k in (1, 5) if by_text else (1,):
            hits = []
            for case in benchmark.cases:
                query, candidates = (texts, seen) if by_text else (seen, texts)
                scores = [float(query[case.query] @ candidates[place]) for place in case.candidates]
                # The centroid is the mean made of unit length, which matters where images are compared.
                if by_text and name == FUSED:
                    scores = [
                        score / float(seen[place].norm()) for score, place in zip(scores, case.candidates, strict=True)
                    ]
                hits.append(sum(score >= scores[0] for score in scores[1:]) < k)
            assert found["all", name, f"recall@{k}"].value == pytest.approx(sum(hits) / len(hits))
    chance = found["all", FUSED, "recall@1"].chance
    assert chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3 if by_text else 1 / 2)


def test_cases_without_an_image_are_left_out_and_counted(
    tmp_path: Path, make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor
) -> None:
    write_facets(tmp_path)
    (tmp_path / "val2017/000000000005.jpg").write_bytes(b"no picture")
    benchmark = open_cases("coco-facet", tmp_path)
    records = by_key(measure_cases(make_model(), processor, benchmark, provenance=PROVENANCE))
    counts = records["all", FUSED, "recall@1"].counts
    assert (counts["n_queries"], counts["n_candidates"]) == (2, 3)
    assert (counts["n_left_out"], counts["n_unusable"]) == (1, 1)
    assert records["COCO_object", FUSED, "recall@1"].counts["n_queries"] == 1
