"""The layouts people have: each row of docs/layouts.md, in its true layout, by the command that stands there."""

import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

from caption_server import CaptionServer, serving
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import load_corpus, read_manifest
from holistic_clip_hf.images.sources import Item

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"
ROW = re.compile(r"^\| (?P<layout>[^|`]+?) \|[^|]*\| `(?P<command>[^`]+)` \|", re.MULTILINE)
COMMANDS = {found["layout"]: found["command"] for found in ROW.finditer(DOCUMENT.read_text(encoding="utf-8"))}


class Expected(NamedTuple):
    """What a corpus holds: captions by image id, their perspective, and the splits where the files say them."""

    captions: dict[str, list[str]]
    perspective: str = "short"
    splits: dict[str, str] = {}
    left_out: dict[str, int] = {}


def draw(*paths: str) -> None:
    for number, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def flickr8k() -> Expected:
    names = ["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg"]
    draw(*(f"flickr8k/Images/{name}" for name in names))
    texts = {name: [f"A child in a pink dress , {number} ." for number in range(5)] for name in names}
    lines = [f'{name},"{text}"' for name, of_image in texts.items() for text in of_image]
    write("flickr8k/captions.txt", "\n".join(["image,caption", *lines]) + "\n")
    return Expected({f"Images/{name}": of_image for name, of_image in texts.items()})


def flickr8k_token() -> Expected:
    draw("Flicker8k_Dataset/1000268201_693b08cb0e.jpg")
    texts = [
        '"Yes" , a child says .',
        "A girl, going into a wooden building .",
        "A little girl .",
        "A girl .",
        "She .",
    ]
    lines = [f"1000268201_693b08cb0e.jpg#{number}\t{text}" for number, text in enumerate(texts)]
    lines += [f"2258277193_586949ec62.jpg.1#{number}\tA person ." for number in range(5)]  # in the true file
    write("Flickr8k.token.txt", "\n".join(lines) + "\n")
    return Expected({"1000268201_693b08cb0e.jpg": texts}, left_out={"no such file": 5})


def flickr30k_results() -> Expected:
    draw("flickr30k_images/flickr30k_images/1000092795.jpg", "flickr30k_images/flickr30k_images/2199200615.jpg")
    texts = ["Two young guys with shaggy hair , outside .", 'A sign that says " Stop " .', '" Go " .', "Two men ."]
    lines = [f"1000092795.jpg| {number}| {text}" for number, text in enumerate(texts)]
    lines += ["2199200615.jpg| 0| A dog runs .", "2199200615.jpg| 4   A dog runs across the grass ."]  # as it is
    write("flickr30k_images/results.csv", "\n".join(["image_name| comment_number| comment", *lines]) + "\n")
    captions = {"flickr30k_images/1000092795.jpg": texts, "flickr30k_images/2199200615.jpg": ["A dog runs ."]}
    return Expected(captions, left_out={"2 cells, not 3 as in the head": 1})


def flickr30k_token() -> Expected:
    draw("flickr30k-images/1000092795.jpg")
    write("results_20130124.token", "1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo men .\n")
    return Expected({"1000092795.jpg": ["Two young guys .", "Two men ."]})


def flickr30k_hub() -> Expected:
    names = {"1000092795.jpg": "train", "10002456.jpg": "val", "1000268201.jpg": "test"}
    draw(*(f"flickr30k-images/{name}" for name in names))
    raw = '"[""Two young guys, outside."", ""A \\""cool\\"" guy.""]"'
    lines = [f'{raw},"[0, 1]",{split},{name},0' for name, split in names.items()]
    write("flickr_annotations_30k.csv", "\n".join(["raw,sentids,split,filename,img_id", *lines]) + "\n")
    splits = {name: "validation" if split == "val" else split for name, split in names.items()}
    return Expected(dict.fromkeys(names, ["Two young guys, outside.", 'A "cool" guy.']), splits=splits)


def karpathy() -> Expected:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        folder, name = "val2014" if number else "train2014", f"COCO_{number:012}.jpg"
        draw(f"coco/{folder}/{name}")
        texts = [{"tokens": ["a"], "raw": f"A man {of} with {number}.", "imgid": 0, "sentid": of} for of in range(5)]
        images.append({"filepath": folder, "filename": name, "imgid": number, "split": split, "sentences": texts})
    write("coco/dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    ids = [f"{each['filepath']}/{each['filename']}" for each in images]
    captions = {name: [f"A man {of} with {number}." for of in range(5)] for number, name in enumerate(ids)}
    return Expected(captions, splits=dict(zip(ids, ["train", "train", "validation", "test"], strict=True)))


def coco() -> Expected:
    draw("coco/val2017/000000397133.jpg", "coco/val2017/000000037777.jpg", "coco/train2017/000000000009.jpg")
    images = [{"license": 4, "file_name": f"{number:012}.jpg", "id": number} for number in (397133, 37777, 5)]
    said = [(37777, "A kitchen."), (397133, "A man cooks."), (37777, "A small kitchen."), (5, "Gone.")]
    annotations = [{"image_id": image, "id": place, "caption": text} for place, (image, text) in enumerate(said)]
    whole = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    write("coco/annotations/captions_val2017.json", json.dumps(whole))
    captions = {"000000397133.jpg": ["A man cooks."], "000000037777.jpg": ["A kitchen.", "A small kitchen."]}
    return Expected(captions, left_out={"no such file": 1})


def albef() -> Expected:
    draw("coco/train2014/1.jpg", "coco/val2014/2.jpg")
    rows = [{"image": "train2014/1.jpg", "caption": text, "image_id": "coco_1"} for text in ("A dog.", "A red dog.")]
    rows.append({"image": "val2014/2.jpg", "caption": ["A cat.", "A tired cat.", "A tom."]})  # as its test files
    write("coco_train.json", json.dumps(rows))
    return Expected(
        {"train2014/1.jpg": ["A dog.", "A red dog."], "val2014/2.jpg": ["A cat.", "A tired cat.", "A tom."]}
    )


def conversation(*answers: str) -> list[dict[str, str]]:
    turns = [({"from": "human", "value": "Say.\n<image>"}, {"from": "gpt", "value": answer}) for answer in answers]
    return [each for turn in turns for each in turn]


def llava() -> Expected:
    draw("images/00453/004539375.jpg", "images/00453/2.jpg")
    rows = [{"id": "004539375", "image": "00453/004539375.jpg", "conversations": conversation("A mattress.")}]
    rows.append({"id": "2", "image": "00453/2.jpg", "conversations": conversation("Yes.", "Three.")})
    rows.append({"id": "3", "conversations": conversation("Of a text alone.")})
    write("blip_laion_cc_sbu_558k.json", json.dumps(rows, indent=2))
    left_out = {"a conversation of several answers, which are not captions": 1, "no path in 'image'": 1}
    return Expected({"00453/004539375.jpg": ["A mattress."]}, "detail", left_out=left_out)


def sharegpt4v() -> Expected:
    draw("data/coco/train2017/000000000009.jpg")
    row = {
        "id": "9",
        "image": "coco/train2017/000000000009.jpg",
        "conversations": conversation("In the center.\n\nA."),
    }
    write("sharegpt4v_instruct_gpt4-vision_cap100k.json", json.dumps([row]))
    return Expected({"coco/train2017/000000000009.jpg": ["In the center.\n\nA."]}, "detail")


def docci() -> Expected:
    splits = {"train_00000": "train", "test_00000": "test", "qual_dev_00000": "validation", "qual_test_00000": "test"}
    draw(*(f"docci/images/{name}.jpg" for name in splits))
    rows = [
        {"example_id": name, "split": name[:-6], "image_file": f"{name}.jpg", "description": f"An eye\u2028of {name}."}
        for name in splits
    ]
    write("docci/docci_descriptions.jsonlines", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    captions = {f"images/{name}.jpg": [f"An eye\u2028of {name}."] for name in splits}
    return Expected(captions, "detail", {f"images/{name}.jpg": split for name, split in splits.items()})


def urban1k() -> Expected:
    draw("Urban1k/image/1.jpg", "Urban1k/image/2.jpg")
    write("Urban1k/caption/1.txt", "A street,\nat night.")
    write("Urban1k/caption/2.txt", "A bridge.")
    write("Urban1k/caption/3.txt", "Nothing.")
    captions = {"image/1.jpg": ["A street, at night."], "image/2.jpg": ["A bridge."]}
    return Expected(captions, "detail", left_out={"a text without an image": 1})


def shards(folder: str, names: tuple[str, ...] = ("00000", "00001")) -> dict[str, str]:
    """Write tar archives as img2dataset does; the texts by image id."""
    picture, texts = io.BytesIO(), {}
    Image.new("RGB", (16, 16)).save(picture, "JPEG")
    Path(folder).mkdir()
    for name in names:
        write(f"{folder}/{name}_stats.json", "{}")
        pq.write_table(pa.table({"url": ["https://example.org/0.jpg"]}), f"{folder}/{name}.parquet")
        with tarfile.open(f"{folder}/{name}.tar", "w") as archive:
            for number in range(2):
                text = f"alt {name} {number}"
                record = json.dumps({"url": "https://example.org/0.jpg", "caption": text, "status": "success"})
                members = (("jpg", picture.getvalue()), ("json", record.encode()), ("txt", text.encode()))
                for ending, data in members:
                    info = tarfile.TarInfo(f"{name}{number:04}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                texts[f"{name}/{name}{number:04}"] = text
    return texts


def tars() -> Expected:
    return Expected({name: [text] for name, text in shards("cc3m").items()}, "web")


def tars_of_pixelprose() -> Expected:
    return Expected({name: [text] for name, text in shards("shards").items()}, "detail")


def files_of_img2dataset() -> Expected:
    captions = {}
    for number in range(3):
        draw(f"cc3m/00000/{number:09}.jpg")
        write(f"cc3m/00000/{number:09}.txt", f"alt {number}")
        write(f"cc3m/00000/{number:09}.json", "{}")
        captions[f"00000/{number:09}.jpg"] = [f"alt {number}"]
    write("cc3m/00000_stats.json", "{}")
    pq.write_table(pa.table({"url": ["https://example.org/0.jpg"]}), "cc3m/00000.parquet")
    left_out = {"the ending .json is not read": 1, "the ending .parquet is not read": 1}
    return Expected(captions, "web", left_out=left_out)


def image_folder() -> Expected:
    draw("photos/0001.png", "photos/0002.png")
    write("photos/metadata.csv", "file_name,text\n0001.png,A golden retriever.\n0002.png,A German shepherd.\n")
    return Expected({"0001.png": ["A golden retriever."], "0002.png": ["A German shepherd."]})


def split_folders() -> Expected:
    captions, splits = {}, {}
    for folder, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        draw(f"flickr8k/{folder}/1.jpg")
        write(f"flickr8k/{folder}/metadata.csv", f"file_name,caption_0,caption_1\n1.jpg,A {folder}.,Another.\n")
        captions[f"{folder}/1.jpg"], splits[f"{folder}/1.jpg"] = [f"A {folder}.", "Another."], split
    return Expected(captions, splits=splits)


def open_clip() -> Expected:
    draw("images/a.jpg", "images/b.jpg")
    write("train.csv", 'filepath\ttitle\nimages/a.jpg\tA dog, a cat\nimages/b.jpg\t"A ""big"" dog"\n')
    return Expected({"images/a.jpg": ["A dog, a cat"], "images/b.jpg": ['A "big" dog']}, "web")


def names_to_captions() -> Expected:
    draw("images/a.jpg", "images/b.jpg")
    write("captions.json", json.dumps({"a.jpg": "A dog.", "b.jpg": ["A cat.", "A tom."]}, indent=1))
    return Expected({"images/a.jpg": ["A dog."], "images/b.jpg": ["A cat.", "A tom."]})


def rows_of_a_dataset() -> Expected:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    columns = {"image": [file.getvalue()] * 3, "name": ["a", "b", "a"], "caption": ["A dog.", "A cat.", "A red dog."]}
    Dataset.from_dict(columns).save_to_disk("birds")
    return Expected({"a": ["A dog.", "A red dog."], "b": ["A cat."]})


WRITERS: dict[str, Callable[[], Expected]] = {
    "Flickr8k, of Kaggle": flickr8k,
    "Flickr8k, of its authors": flickr8k_token,
    "Flickr30k, of Kaggle": flickr30k_results,
    "Flickr30k, of its authors": flickr30k_token,
    "Flickr30k, of the Hub": flickr30k_hub,
    "Karpathy's splits": karpathy,
    "COCO": coco,
    "ALBEF, BLIP": albef,
    "LLaVA": llava,
    "ShareGPT4V": sharegpt4v,
    "DOCCI": docci,
    "Urban1k": urban1k,
    "Conceptual Captions, LAION": tars,
    "PixelProse": tars_of_pixelprose,
    "img2dataset, as files": files_of_img2dataset,
    "imagefolder": image_folder,
    "imagefolder with splits": split_folders,
    "open_clip": open_clip,
    "names with captions": names_to_captions,
    "datasets": rows_of_a_dataset,
}


def test_the_page_has_a_row_for_each_layout() -> None:
    assert list(COMMANDS) == list(WRITERS)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layout_opens_by_its_own_files(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = WRITERS[layout]()
    corpus = Path("built")
    parse("corpus", [*shlex.split(COMMANDS[layout]), "--output", str(corpus), "--no-report", "--name", "n"])()
    rows = list(load_corpus(corpus).remove_columns("image"))
    assert {row["image_id"]: [each["text"] for each in row["captions"]] for row in rows} == expected.captions
    assert {each["perspective"] for row in rows for each in row["captions"]} == {expected.perspective}
    if expected.splits:
        assert {row["image_id"]: row["split"] for row in rows} == expected.splits
    assert read_manifest(corpus)["reasons"] == expected.left_out
    asked = parse("caption", [*shlex.split(COMMANDS[layout]), "--model", "m", "--output", "rows"]).source.open()
    ids = {item.image_id for item in asked.items() if isinstance(item, Item)}
    assert ids >= expected.captions.keys(), "the ids by which the rows of a captioner are joined"


def test_several_captions_of_one_perspective_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco()
    command = COMMANDS["COCO"]
    parse("corpus", [*shlex.split(command), "--output", "built", "--no-report", "--name", "coco"])()
    sources = {row["image_id"]: [each["source"] for each in row["captions"]] for row in load_corpus(Path("built"))}
    assert sources == {"000000397133.jpg": ["coco"], "000000037777.jpg": ["coco-0", "coco-1"]}


def test_a_captioner_asks_once_about_an_image_of_five_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # a server on this machine is not the Hub
    expected = flickr8k().captions
    write("prompts.yaml", "- {name: scene, prompt: Describe it., max_new_tokens: 8}")
    asking = ["--model", "m", "--perspectives-file", "prompts.yaml", "--output", "rows"]
    with serving(CaptionServer()) as server:
        parse("caption", ["folder", "flickr8k", "--server", server.url, *asking])()
    assert len(server.asked) == 2
    parse("corpus", ["folder", "flickr8k", "--rows", "rows", "--output", "built", "--no-report"])()
    for row in load_corpus(Path("built")).remove_columns("image"):
        assert [each["text"] for each in row["captions"][:5]] == expected[row["image_id"]]
        assert [each["perspective"] for each in row["captions"]] == ["short"] * 5 + ["scene"]
