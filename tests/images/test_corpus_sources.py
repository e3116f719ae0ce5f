"""Sources: what lies in folders, lists, tar archives and data sets, and what of it is left out for which reason."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from holistic_clip_hf.images.archives import TarShards
from holistic_clip_hf.images.folders import ImageFolder, ListedImages, official_json_lines
from holistic_clip_hf.images.sources import CaptionColumns, Item, MalformedRecordError, Skipped, Source
from holistic_clip_hf.images.tables import TableSource, load_table


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, data: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data or png())
    return path


def found(source: Source) -> dict[str, dict[tuple[str, str], str] | str]:
    """By image id: the captions by perspective and source, or the reason why it is left out."""
    items = list(source.items())
    assert list(source.items()) == items, "the same at every call"
    return {
        each.item if isinstance(each, Skipped) else each.image_id: each.reason
        if isinstance(each, Skipped)
        else {(caption["perspective"], caption["source"]): caption["text"] for caption in each.captions}
        for each in items
    }


def read_all(source: Source) -> dict[str, bytes]:
    return {item.image_id: source.read(item.place) for item in source.items() if isinstance(item, Item)}


def test_columns_become_perspectives() -> None:
    columns = CaptionColumns({"alt": "web", "many": "short", "ordered": ["detail", "nouns"], "title": "web"}, "me")
    record = {"alt": " a ", "many": ["b", None, "c"], "ordered": ["", "d"], "title": "e", "width": 3}
    expected = [("web", "a", "me-alt"), ("short", "b", "me-0"), ("short", "c", "me-2")]
    expected += [("nouns", "d", "me"), ("web", "e", "me-title")]
    assert [tuple(caption.values()) for caption in columns.read(record)] == expected
    assert columns.read({"alt": None}) == []
    with pytest.raises(MalformedRecordError, match="'alt' holds int, not text"):
        columns.read({"alt": 3})
    with pytest.raises(ValueError, match="Column 'ordered' has 3 captions; expected 2"):
        columns.read({"ordered": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="no empty name"):
        CaptionColumns({"alt": " "}, "me")


def test_a_column_that_never_comes_is_an_error() -> None:
    columns = CaptionColumns({"caption": "web"}, "me")
    columns.read({"text": "a"})
    with pytest.raises(ValueError, match=r"\['caption'\], which no record of here has; expected some of text"):
        columns.require_all_seen("here")


def test_a_folder_of_images_with_texts_beside(tmp_path: Path) -> None:
    write(tmp_path / "b/cat.JPG", png(1))
    write(tmp_path / "b/cat.txt", "a cat\n on a mat ")
    write(tmp_path / "b/lone.txt", "nothing")
    write(tmp_path / "b/latin.png", png(2))
    write(tmp_path / "b/latin.txt", "café".encode("latin-1"))
    write(tmp_path / "a.webp", png(3))
    write(tmp_path / "readme.md", "no image")
    write(tmp_path / ".hidden/x.png")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    source = ImageFolder(tmp_path, perspective="web", name="mine")
    assert found(source) == {
        "a.webp": {},
        "link": "a link to a folder",
        "readme.md": "the ending .md is not read",
        "b/cat.JPG": {("web", "mine"): "a cat on a mat"},
        "b/latin.png": "its text is not UTF-8",
        "b/lone.txt": "a text without an image",
    }
    assert read_all(source) == {"a.webp": png(3), "b/cat.JPG": png(1)}
    before = next(source.items())
    write(tmp_path / "a.webp", png(4))
    os.utime(tmp_path / "a.webp", (1, 1))
    assert isinstance(before, Item) and next(source.items())._replace(stamp=before.stamp) == before  # type: ignore[union-attr]
    assert next(source.items()) != before, "another file of the same length has another stamp"
    with pytest.raises(ValueError, match="is not a folder"):
        ImageFolder(tmp_path / "none")


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(png())
    assert found(ImageFolder(tmp_path)) == {"'caf\\udce9.png'": "its name is not UTF-8"}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_list_of_images(tmp_path: Path, ending: str) -> None:
    write(tmp_path / "x/one.png", png(1))
    write(tmp_path / "two.png", png(2))
    rows = [["x/one.png", "an alt, quoted", "A long text."], ["./two.png", "", "Another."], ["three.png", "gone", ""]]
    rows += [["../out.png", "outside", ""], ["", "no name", ""]]
    head = ["file_name", "alt", "long"]
    if ending == "csv":
        lines = [",".join(f'"{cell}"' for cell in row) for row in [head, *rows]]
    else:
        lines = [json.dumps(dict(zip(head, row, strict=True))) for row in rows]
    listing = write(tmp_path / f"metadata.{ending}", b"\n".join([*(line.encode() for line in lines), b'"\xff",b,c']))
    source = ListedImages(listing, {"alt": "web", "long": "detail"}, name="mine")
    after = {"csv": 6, "jsonl": 5}[ending]
    assert found(source) == {
        "x/one.png": {("web", "mine"): "an alt, quoted", ("detail", "mine"): "A long text."},
        "two.png": {("detail", "mine"): "Another."},
        "three.png": "no such file",
        "../out.png": "its path leaves the folder of the images",
        f"metadata.{ending}:{after}": "no path in 'file_name'",
        f"metadata.{ending}:{after + 1}": "not in UTF-8; name the encoding of the list, with `--encoding latin-1`",
    }
    assert read_all(source) == {"x/one.png": png(1), "two.png": png(2)}
    with pytest.raises(
        ValueError, match=r"\['caption'\], which no record of .*; expected some of file_name, alt, long"
    ):
        list(ListedImages(listing, {"caption": "web"}).items())
    with pytest.raises(ValueError, match="is not a file"):
        ListedImages(tmp_path / "none.csv", {})


def test_csv_with_a_wrong_number_of_cells(tmp_path: Path) -> None:
    listing = write(tmp_path / "metadata.csv", "file_name,alt\na.png,b,c,d\na.png,good\n")
    write(tmp_path / "a.png")
    expected = {"metadata.csv:2": "4 cells, not 2 as in the head"}
    assert found(ListedImages(listing, {"alt": "web"}, name="m")) == {**expected, "a.png": {("web", "m"): "good"}}


def test_the_papers_own_format(tmp_path: Path) -> None:
    write(tmp_path / "images/1.jpg")
    lines = [{"image": "1.jpg", "caption": ["w", "d"]}, [1], {"caption": ["w"]}, {"image": "2.jpg", "caption": [3]}]
    listing = write(tmp_path / "cc3m.jsonl", "\n".join(map(json.dumps, lines)) + "\n{torn")
    source = official_json_lines(listing, ["web", "detail", "short"], root=tmp_path / "images", name="cc3m")
    assert found(source) == {
        "1.jpg": {("web", "cc3m"): "w", ("detail", "cc3m"): "d"},
        "cc3m.jsonl:2": "no record in JSON",
        "cc3m.jsonl:3": "no path in 'image'",
        "cc3m.jsonl:4": "'caption' holds int, not text",
        "cc3m.jsonl:5": "no record in JSON",
    }
    with pytest.raises(ValueError, match="Column 'caption' has 2 captions; expected 1, one for each of web"):
        list(official_json_lines(listing, ["web"], root=tmp_path / "images").items())


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_tar_archives(tmp_path: Path) -> None:
    record = json.dumps({"long": "A long text.", "width": 9}).encode()
    first = {"0.jpg": png(1), "0.txt": b"alt\n", "0.json": record, "d/1.png": png(2), "2.txt": b"no image"}
    first |= {"3.jpg": png(3), "3.txt": b"\xff", "4.jpg": png(4), "4.json": b"[]", "5.jpg": png(5), "5.png": png(6)}
    paths = [
        write_tar(tmp_path / "00.tar", first),
        write_tar(tmp_path / "01.tar", {"0.seg.jpg": b"", "0.jpg": png(7)}),
    ]
    source = TarShards(paths, {"txt": "web", "long": "detail"}, name="cc")
    assert found(source) == {
        "00/0": {("web", "cc"): "alt", ("detail", "cc"): "A long text."},
        "00/d/1": {},
        "00/2": "no images of one key",
        "00/3": "its txt is not UTF-8",
        "00/4": "its .json member is not an object",
        "00/5": "2 images of one key",
        "01/0": {},
    }
    assert read_all(source) == {"00/0": png(1), "00/d/1": png(2), "01/0": png(7)}
    with pytest.raises(ValueError, match=r"\['none'\], which no record"):
        list(TarShards(paths, {"none": "web"}).items())


@pytest.mark.parametrize("damage", ["cut", "scratched", "without an end"])
def test_damaged_archives_keep_what_can_be_read(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "00.tar", {f"{number}.png": png(number) for number in range(9)})
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: 5 * 1024 + 520]
    elif damage == "scratched":
        data[5 * 1024 : 5 * 1024 + 100] = b"\xff" * 100
    else:
        data = data[: 5 * 1024]
    path.write_bytes(data)
    kept = [f"00/{number}" for number in range(5)]
    *rest, last = found(TarShards([path], {})).items()
    assert [name for name, captions in rest if captions == {}] == kept
    assert last[0] == "00" and "damaged or cut, what follows in it is left out" in str(last[1])


def test_archives_are_checked_at_the_door(tmp_path: Path) -> None:
    packed = tmp_path / "00.tar.gz"
    with tarfile.open(packed, "w:gz"):
        pass
    with pytest.raises(ValueError, match="not a plain tar archive.*Unpack it"):
        TarShards([packed], {})
    with pytest.raises(ValueError, match="is not a file"):
        TarShards([tmp_path / "01.tar"], {})
    with pytest.raises(ValueError, match="`paths` has 2 archives with 1 names"):
        TarShards([tmp_path / "a/0.tar", tmp_path / "b/0.tar"], {})


def table(tmp_path: Path) -> Dataset:
    images = [{"bytes": png(1), "path": None}, {"bytes": None, "path": str(write(tmp_path / "2.png", png(2)))}, None]
    features = {
        "image": ImageFeature(),
        "short": Value("string"),
        "many": List(Value("string")),
        "key": Value("int64"),
    }
    columns = {"image": images, "short": ["a", None, "c"], "many": [["d", "e"], [], ["f"]], "key": [7, 8, 9]}
    return Dataset.from_dict(columns, features=Features({**features, "key": Value("int64")}))


def test_tables(tmp_path: Path) -> None:
    captions = {"short": "short", "many": "detail"}
    options = {"name": "me/birds", "id_column": "key", "split": "test"}
    source = TableSource(table(tmp_path), captions, **options, folders=[tmp_path])
    assert found(source) == {
        "7": {("short", "me/birds"): "a", ("detail", "me/birds-0"): "d", ("detail", "me/birds-1"): "e"},
        "8": {},
        "9": {("short", "me/birds"): "c", ("detail", "me/birds"): "f"},
    }
    items = [item for item in source.items() if isinstance(item, Item)]
    assert [source.read(item.place) for item in items[:2]] == [png(1), png(2)]
    assert {item.split for item in items} == {"test"}
    with pytest.raises(OSError, match="no image"):
        source.read(items[2].place)
    with pytest.raises(OSError, match="its path is not below an allowed folder"):
        TableSource(table(tmp_path), captions, **options).read(items[1].place)
    assert list(found(TableSource(table(tmp_path), {}, name="x"))) == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"\['caption'\] are missing; expected some of image, short, many, key"):
        TableSource(table(tmp_path), {"caption": "web"}, name="x")
    with pytest.raises(ValueError, match="Cast it"):
        TableSource(table(tmp_path), {}, name="x", image_column="key")
    with pytest.raises(ValueError, match="Save the rows as CSV or JSON lines, and give them to `list`"):
        TableSource(table(tmp_path), {}, name="x", image_column="short")


@pytest.mark.parametrize("options", [{}, {"image_column": "url"}])
def test_tables_of_addresses_are_refused_with_the_command_that_downloads_them(options: dict[str, str]) -> None:
    rows = Dataset.from_dict({"url": ["https://example.org/1.jpg"], "vlm_caption": ["A dog."], "key": ["1"]})
    command = "img2dataset --url_list urls.parquet --input_format parquet --url_col url --caption_col vlm_caption"
    with pytest.raises(ValueError, match=rf"'url' of Value.*to_parquet.*{command} .* --caption txt=detail`"):
        TableSource(rows, {}, name="x", **options)
    with pytest.raises(ValueError, match=r"The columns \['image'\] are missing; expected some of key, caption"):
        TableSource(Dataset.from_dict({"key": ["1"], "caption": ["x"]}), {}, name="x")


def test_tables_say_their_splits(tmp_path: Path) -> None:
    columns = {"image": [png()] * 3, "caption": ["a", "b", "c"], "split": ["train", "val", "test"]}
    Dataset.from_dict(columns).to_parquet(str(tmp_path / "rows.parquet"))
    rows = load_table(str(tmp_path / "rows.parquet"))
    items = [item for item in TableSource(rows, name="x").items() if isinstance(item, Item)]
    assert [item.split for item in items] == ["train", "validation", "test"]
    items = [item for item in TableSource(rows, name="x", split="test").items() if isinstance(item, Item)]
    assert {item.split for item in items} == {"test"}


def test_tables_of_bytes(tmp_path: Path) -> None:
    source = TableSource(Dataset.from_dict({"jpg": [png(1)], "t": ["a"]}), {"t": "web"}, name="x", image_column="jpg")
    assert read_all(source) == {"0": png(1)}


def list_of(folder: Path, *lines: str) -> ListedImages:
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    (folder / "metadata.csv").write_text("file_name,alt\n" + "".join(f"{line}\n" for line in lines))
    return ListedImages(folder / "metadata.csv", {"alt": "web"})


@pytest.mark.parametrize("stray", ['a.png,"a dog', 'a.png,"a "big" dog"', '"a.png,a dog'])
def test_a_stray_quote_swallows_no_lines(tmp_path: Path, stray: str) -> None:
    lines = ["a.png,a dog"] * 49 + [stray] + ["a.png,a dog"] * 149
    with pytest.raises(ValueError, match=r"metadata.csv, line 51: a double quote does not close as it should"):
        list(list_of(tmp_path, *lines).items())


def test_a_quote_that_closes_far_below_is_told(tmp_path: Path) -> None:
    lines = ["a.png,a dog", 'a.png,"a dog', *["a.png,a dog"] * 60, 'a dog"', "a.png,a dog"]
    with pytest.raises(ValueError, match=r"metadata.csv, line 3: a double quote does not close .*more than 50 lines"):
        list(list_of(tmp_path, *lines).items())


def test_captions_of_several_lines_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (item,) = list_of(tmp_path, 'a.png,"a dog\nin ""snow"""', 'a.png,a 12" ruler').items()
    assert [each["text"] for each in item.captions] == ['a dog\nin "snow"', 'a 12" ruler']
    assert (
        "metadata.csv: 1 records go over several lines, inside double quotes; the first begins at line 2."
        in caplog.text
    )


def test_a_file_without_quotes_tells_of_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (item,) = list_of(tmp_path, "a.png,a dog", "", "a.png,a cat").items()
    assert isinstance(item, Item) and len(item.captions) == 2
    assert caplog.text == ""


def test_a_stray_quote_before_long_lines_is_told(tmp_path: Path) -> None:
    """Of 3 lines, the letters go beyond what the reader takes for a field: one line was left out, and 2 were lost."""
    lines = ["a.png,a dog", 'a.png,"a dog', *["a.png," + "word " * 20_000] * 9]
    with pytest.raises(ValueError, match=r"metadata.csv, line 3: a double quote does not close as it should"):
        list(list_of(tmp_path, *lines).items())


def test_a_cell_that_is_too_long_costs_its_own_line_alone(tmp_path: Path) -> None:
    one, other = list_of(tmp_path, "a.png," + "word " * 40_000, "a.png,a cat").items()
    assert isinstance(one, Skipped) and one.reason == "a cell of more than 131,072 letters"
    assert isinstance(other, Item) and other.captions[0]["text"] == "a cat"


@pytest.mark.parametrize("before", ["", "\n\n", '"a ""big""\ndog",', ',"",'])
def test_the_line_is_named_where_the_field_begins(tmp_path: Path, before: str) -> None:
    line = 3 + before.count("\n")
    with pytest.raises(ValueError, match=rf"metadata.csv, line {line}: a double quote does not close as it should"):
        list(list_of(tmp_path, "a.png,a dog", f'{before}a.png,"a dog', "a.png,a cat").items())


def test_a_row_that_lacks_a_cell_is_told(tmp_path: Path) -> None:
    one, other = list_of(tmp_path, "a.png", "a.png,a cat").items()
    assert one == Skipped("metadata.csv:2", "1 cells, not 2 as in the head")
    assert isinstance(other, Item)


def test_a_line_separator_of_unicode_ends_no_record(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.png", "alt": "a\u2028b"}\n', encoding="utf-8")
    (item,) = ListedImages(tmp_path / "list.jsonl", {"alt": "web"}).items()
    assert item.captions[0]["text"] == "a\u2028b"
