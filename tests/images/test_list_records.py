"""Records of lists in every form that people have, and the sentence for what is not a list."""

import json
import os
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from holistic_clip_hf.corpus.plan import BuildSettings, make_plan
from holistic_clip_hf.images.folders import ImageFolder, ListedFolder, ListedImages, find_lists
from holistic_clip_hf.images.records import TextForm, first_line, read_records
from holistic_clip_hf.images.sources import CaptionColumns, Item, Skipped, Source, join_captions, list_in

ROWS = [("a.png", "A café, “open”"), ("b.png", "two; words|and\u2028more")]
HEAD = ("image", "caption")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    return tmp_path


def captions_of(source: Source) -> dict[str, list[str]]:
    return {
        item.image_id: [each["text"] for each in item.captions] for item in source.items() if isinstance(item, Item)
    }


def left_out(source: Source) -> dict[str, str]:
    return dict(each for each in source.items() if isinstance(each, Skipped))


def table(delimiter: str, quote: str = '"') -> str:
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in (HEAD, *ROWS))


RECORDS = [dict(zip(HEAD, row, strict=True)) for row in ROWS]
FORMS = {
    "comma": table(","),
    "semicolon": table(";"),
    "tab": table("\t"),
    "bar": table("|"),
    "tab without quotes": table("\t", ""),
    "Windows' lines": table(",").replace("\n", "\r\n"),
    "an old Mac's lines": table(",").replace("\n", "\r"),
    "blank lines": "\n\n" + table(",").replace("\n", "\n\n"),
    "no head": "".join(f'{name},"{text}"\n' for name, text in ROWS),
    "no head, tabs": "".join(f"{name}\t{text}\n" for name, text in ROWS),
    "token": "".join(f"{name}#0\t{text}\n" for name, text in ROWS),
    "JSON lines": "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS),
    "JSON array": json.dumps(RECORDS, ensure_ascii=False),
    "JSON array, indented": "\n " + json.dumps(RECORDS, indent=4),
    "JSON object": json.dumps({"version": 1, "data": RECORDS}, ensure_ascii=False),
    "JSON object, indented": json.dumps({"data": RECORDS, "type": "captions"}, indent=1),
    "names with captions": json.dumps(dict(ROWS)),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_told_from_the_contents(folder: Path, form: str, encoding: str) -> None:
    (folder / "list").write_bytes(FORMS[form].encode(encoding))
    assert captions_of(ListedImages(folder / "list")) == {name: [text] for name, text in ROWS}
    assert first_line(folder / "list")[:1] == FORMS[form].strip()[0]


HEADS = ["Image,Caption", "FILE_NAME,Text", "path,caption_0", "Filename,Comment1"]
HEADS += ["file,caption", "Path,Caption", "img_name,title", "image_id,caption", "photo_file_name,text"]


@pytest.mark.parametrize("head", HEADS)
def test_names_of_columns_are_known_in_capitals_too(folder: Path, head: str) -> None:
    (folder / "list").write_text(f"{head}\na.png,x\n")
    assert captions_of(ListedImages(folder / "list")) == {"a.png": ["x"]}


def test_parquet(folder: Path) -> None:
    columns = {"image": ["a.png", "b.png"], "caption": [["one", "two"], ["three"]], "thumbnail": [b"x", b"y"]}
    pq.write_table(pa.table(columns), folder / "list")
    assert captions_of(ListedImages(folder / "list")) == {"a.png": ["one", "two"], "b.png": ["three"]}


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", "café"), ("utf-16-le", "café"), ("shift_jis", "犬")])
def test_other_encodings_are_named(folder: Path, encoding: str, text: str) -> None:
    (folder / "list").write_bytes(f"image,caption\na.png,{text}\nb.png,plain\n".encode(encoding))
    source = ListedImages(folder / "list", form=TextForm(encoding))
    assert captions_of(source) == {"a.png": [text], "b.png": ["plain"]}


def test_in_utf8_a_line_of_other_bytes_costs_itself_alone(folder: Path) -> None:
    (folder / "list").write_bytes("image,caption\na.png,café\nb.png,plain\n".encode("latin-1"))
    source = ListedImages(folder / "list")
    assert captions_of(source) == {"b.png": ["plain"]}
    assert left_out(source) == {"list:2": "not in UTF-8; name the encoding of the list, with `--encoding latin-1`"}


def test_quotes_may_be_letters(folder: Path) -> None:
    (folder / "list").write_text('image|caption\na.png|"Go" he says\nb.png|12"\n')
    with pytest.raises(ValueError, match=r"line 2: a double quote does not close .*\(`--no-quotes`\)"):
        list(ListedImages(folder / "list").items())
    expected = {"a.png": ['"Go" he says'], "b.png": ['12"']}
    assert captions_of(ListedImages(folder / "list", form=TextForm(quotes=False))) == expected


NO_LISTS: dict[str, tuple[bytes | str, str]] = {
    "nothing": ("", r"has no record; expected a table, JSON or parquet .* begins with ''"),
    "a head": ("image,caption\n", "has no record; .* begins with 'image,caption'"),
    "prose": ("Hello, reader.\nGoodbye.\n", "begins with 'Hello, reader.'. list:2: 1 cells, not 2 as in the head"),
    "a page": (
        "<!DOCTYPE html>\n<p>404",
        "to name images; expected one of image_name, .* begins with '<!DOCTYPE html>'",
    ),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\n", "begins with 'version https://git-lfs"),
    "other columns": (
        "pic,alt\na.png,x\n",
        r"It has pic, alt, and begins with 'pic,alt'. .* `--image-column`",
    ),
    "another array": ('[{"pic": "a.png"}]', "It has pic, and begins with '"),
    "an array of texts": ('["a.png"]', r"has no record; .* list:1: no record in JSON"),
    "a cut array": ('[{"image": "a.png"}, {"ima', "element 2 of the JSON array does not parse"),
    "a cut object": ('{"data": [{"image": "a.png"}, {"ima', "is not valid JSON"),
    "detections": ('{"images": [{"id": 1}], "annotations": [{"bbox": []}]}', "has no captions in its annotations"),
    "a column twice": ("image,caption,caption\na.png,x,y\n", "head of .* names 'caption' twice"),
    "gzip": (b"\x1f\x8b\x08\x00", "is compressed with gzip; expected .* Unpack it"),
    "zip": (b"PK\x03\x04aaaa", "is compressed with zip"),
    "UTF-16 without a mark": ("image,caption\n".encode("utf-16-le"), r"zero bytes; .* `--encoding utf-16-le`"),
    "Latin-1 in the head": ("image,légende\na.png,x\n".encode("latin-1"), "first line of .* is not in UTF-8"),
    "commas, no head": ("a.png,a dog, a cat\n", "has no head: it begins with 'a.png,a dog, a cat'"),
    "broken parquet": (b"PAR1 and no more", "is not valid parquet"),
    "addresses": (
        "url,caption\nhttps://example.org/1.jpg,x\n",
        r"'url' of .* has addresses, .*`img2dataset --url_list .*list --input_format csv --url_col url --caption_col "
        r"caption --output_format webdataset --output_folder shards`, then use `tar shards --caption txt=web`",
    ),
    "addresses of LAION": ("URL\tTEXT\nhttp://e.org/1.jpg\tx\n", "--url_col URL --caption_col TEXT"),
    "addresses, no head": ("a dog\thttps://example.org/1.jpg\n", r"addresses and no head: .* 'a dog\\thttps"),
}


@pytest.mark.parametrize("name", NO_LISTS)
def test_what_is_not_a_list_is_told_by_its_first_line(folder: Path, name: str) -> None:
    data, message = NO_LISTS[name]
    (folder / "list").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=message):
        list(ListedImages(folder / "list").items())


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="`encoding` is 'klingon'; expected one that Python knows"):
        TextForm("klingon")


def test_parquet_of_addresses_is_refused_with_its_command(folder: Path) -> None:
    columns = {"url": ["https://example.org/1.jpg"], "vlm_caption": ["A dog."], "status": ["ok"]}
    pq.write_table(pa.table(columns), folder / "pixelprose.parquet")
    with pytest.raises(ValueError, match="--input_format parquet .* --caption_col vlm_caption .* txt=detail"):
        list(ListedImages(folder / "pixelprose.parquet").items())


def test_a_row_that_names_an_address_is_left_out(folder: Path) -> None:
    (folder / "list").write_text("image,caption\na.png,x\nhttps://example.org/1.jpg,y\n")
    assert left_out(ListedImages(folder / "list")) == {
        "https://example.org/1.jpg": "its path is an address, which is not fetched"
    }


def test_a_long_array_is_read_in_pieces(tmp_path: Path) -> None:
    """Elements longer than a piece, brackets and commas in texts, and 10 MB in seconds."""
    texts = ['[],{}"\\' * 20_000, *(f"text {number}, ]" for number in range(100_000))]
    (tmp_path / "list").write_text(json.dumps([{"text": text} for text in texts]))
    begin = time.process_time()
    assert [record["text"] for _, record in read_records(tmp_path / "list") if isinstance(record, dict)] == texts
    assert time.process_time() - begin < 20


def test_lists_in_cells() -> None:
    assert list_in('["a", null, "b"]') == ["a", None, "b"]
    assert list_in("['it\\'s', \"b\"]") == ["it's", "b"]
    for text in (
        "[sic] a dog",
        "[]",
        "[1, 2]",
        '["a", 1]',
        '["a"] and more',
        '["a"',
        "['a' 'b', open('x')]",
        "[" * 9_000,
    ):
        assert list_in(text) == text
    assert list_in(3) == 3
    columns = CaptionColumns({"raw": ["detail", "short"]}, "me")
    found = columns.read({"raw": '["long", "brief"]'})
    assert [(each["perspective"], each["text"]) for each in found] == [("detail", "long"), ("short", "brief")]


def test_rows_of_an_image_join_wherever_they_stand() -> None:
    def items() -> Iterator[Item | Skipped]:
        for number, name in enumerate("abacb"):
            captions = [{"perspective": "short", "text": f"{name} {number}", "source": "s"}]
            captions += [{"perspective": "web", "text": "once", "source": "s"}] if number == 0 else []
            yield Item(name, f"place {number}", "1", captions, 7, "test" if number == 0 else "")
            if number == 1:
                yield Skipped("x", "why")

    skipped, *joined = join_captions(items())
    assert skipped == Skipped("x", "why")
    found = {
        item.image_id: [(each["perspective"], each["text"], each["source"]) for each in item.captions]
        for item in joined
        if isinstance(item, Item)
    }
    assert found == {
        "a": [("short", "a 0", "s-0"), ("web", "once", "s"), ("short", "a 2", "s-1")],
        "b": [("short", "b 1", "s-0"), ("short", "b 4", "s-1")],
        "c": [("short", "c 3", "s")],
    }
    assert joined[0][1:3] == ("place 0", "1") and joined[0][4:] == (7, "test")  # type: ignore[comparison-overlap]


NFC, NFD = (unicodedata.normalize(form, "Café/é ü.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("listed", "stored"), [(NFC, NFD), (NFD, NFC), (f"{NFC[:4]}{NFD[5:]}", NFD)])
def test_names_match_in_either_form(tmp_path: Path, listed: str, stored: str) -> None:
    (tmp_path / stored).parent.mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / stored)
    (tmp_path / "list.csv").write_text(f"image,caption\n{listed},x\n", encoding="utf-8")
    assert captions_of(ListedImages(tmp_path / "list.csv")) == {stored: ["x"]}
    (tmp_path / stored).with_name(os.path.basename(listed)).with_suffix(".txt").write_text("beside", encoding="utf-8")
    assert captions_of(ImageFolder(tmp_path)) == {stored: ["beside"]}


def test_images_are_looked_for_in_sub_folders(tmp_path: Path) -> None:
    for place in ("one/a.png", "two/deep/b.png", "one/c.png", "two/c.png", ".hidden/d.png", "two/deep/er/e.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / place)
    (tmp_path / "list").write_text("image,caption\n" + "".join(f"{name}.png,x\n" for name in "abcde"))
    source = ListedImages(tmp_path / "list")
    assert list(captions_of(source)) == ["one/a.png", "two/deep/b.png"]
    assert left_out(source) == {
        "c.png": "in several folders: one/c.png, two/c.png",
        "d.png": "no such file",
        "e.png": "no such file",
    }


def test_paths_of_windows_are_read(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "a.png")
    (folder / "list").write_text("image,caption\nsub\\a.png,x\n..\\..\\a.png,y\n")
    source = ListedImages(folder / "list")
    assert captions_of(source) == {"sub/a.png": ["x"]}
    assert left_out(source) == {"..\\..\\a.png": "its path leaves the folder of the images"}


@pytest.mark.parametrize(("value", "split"), [("val", "validation"), ("restval", "train"), ("TEST", "test"), ("", "")])
def test_splits_are_read_where_the_list_has_them(folder: Path, value: str, split: str) -> None:
    (folder / "list").write_text(f"image,caption,split\na.png,x,{value}\n")
    (item,) = ListedImages(folder / "list").items()
    assert isinstance(item, Item) and item.split == split
    (item,) = ListedImages(folder / "list", has_splits=False).items()
    assert isinstance(item, Item) and item.split == ""


def test_an_unknown_split_is_refused(folder: Path) -> None:
    (folder / "list").write_text("image,caption,split\na.png,x,holdout\n")
    with pytest.raises(ValueError, match=r"'split' has 'holdout'; expected one of train, .*`--no-splits`"):
        list(ListedImages(folder / "list").items())


@pytest.mark.parametrize("head", HEADS)
def test_a_list_beside_the_images_is_found_by_whatever_it_is_read_by(folder: Path, head: str) -> None:
    (folder / "mine.csv").write_text(f"{head}\na.png,x\n")
    assert find_lists(folder) == [folder / "mine.csv"]


def test_lists_are_found_in_a_folder(tmp_path: Path) -> None:
    def found() -> list[str]:
        return [each.relative_to(tmp_path).as_posix() for each in find_lists(tmp_path)]

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("image,caption\na.png,it is the text beside an image\n")
    (tmp_path / "notes.csv").write_text("day,weather\nMonday,rain\n")
    (tmp_path / "urls.csv").write_text("url,caption\nhttps://example.org,x\n")
    os.mkfifo(tmp_path / "pipe.csv")
    assert found() == []
    (tmp_path / "captions.txt").write_text("image,caption\na.png,x\n")
    assert found() == ["captions.txt"]
    (tmp_path / "more.json").write_text('[{"image": "a.png", "caption": "x"}]')
    assert found() == ["captions.txt", "more.json"]
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    assert found() == ["captions.txt", "more.json"], "an image beside them would be lost"
    (tmp_path / "a.png").unlink()
    assert found() == ["test/metadata.jsonl", "train/metadata.jsonl"]
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    assert found() == ["metadata.csv"]


def test_a_folder_is_not_split_if_that_would_lose_images(tmp_path: Path) -> None:
    for name in ("train/1.png", "more/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n1.png,x\n")
    assert find_lists(tmp_path) == []
    (tmp_path / "more" / "metadata.csv").write_text("file_name,text\n2.png,x\n")
    assert len(find_lists(tmp_path)) == 2
    Image.new("RGB", (16, 16)).save(tmp_path / "3.png")
    assert find_lists(tmp_path) == []


def test_folders_with_lists_of_their_own(tmp_path: Path) -> None:
    for name in ("train", "other"):
        (tmp_path / name).mkdir()
        for image in ("1.png", "unnamed.png"):
            Image.new("RGB", (16, 16)).save(tmp_path / name / image)
        (tmp_path / name / "metadata.csv").write_text(f"file_name,alt\n1.png,{name}\ngone.png,x\n")
    source = ListedFolder(tmp_path, find_lists(tmp_path), {"alt": "web"})
    unnamed: dict[str, list[str]] = {"other/unnamed.png": [], "train/unnamed.png": []}
    assert captions_of(source) == {"other/1.png": ["other"], "train/1.png": ["train"], **unnamed}
    assert left_out(source) == dict.fromkeys(("other/gone.png", "train/gone.png"), "no such file")
    splits: dict[str, Any] = {item.image_id: item.split for item in source.items() if isinstance(item, Item)}
    assert splits == {"other/1.png": "", "train/1.png": "train", "other/unnamed.png": "", "train/unnamed.png": "train"}
    assert source.read("train/1.png") == (tmp_path / "train/1.png").read_bytes()


def test_texts_and_images_in_folders_of_their_own(tmp_path: Path) -> None:
    """Images in the folder of the texts are images, too."""
    files = {"images/1.png": "", "images/2.png": "", "text/sign.png": "", "text/1.txt": "one", "text/3.txt": "lone"}
    files |= {"images/2.txt": "beside", "text/2.txt": "apart", "text/deep/4.txt": "four", "images/deep/4.png": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name) if not text else (tmp_path / name).write_text(text)
    source = ImageFolder(tmp_path)
    expected = {"images/1.png": ["one"], "images/2.png": ["beside"], "images/deep/4.png": ["four"]}
    assert captions_of(source) == {**expected, "text/sign.png": []}
    assert left_out(source) == {"text/3.txt": "a text without an image"}


def test_a_list_without_its_images_says_where_they_were_sought(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("image,caption\nval2014/1.png,x\n")
    message = rf"1 left out: no such file. The images .* below {tmp_path}, the first as 'val2014/1.png'.*--root"
    with pytest.raises(ValueError, match=message), make_plan([ListedImages(tmp_path / "list")], BuildSettings()):
        pass


@pytest.mark.parametrize(("name", "advice"), [("0.tar", "`tar`"), ("0.parquet", "`dataset`"), ("0.HEIC", "jpg")])
def test_a_folder_of_something_else_says_what_reads_it(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).touch()
    ending = Path(name).suffix.casefold()
    message = rf"1 left out: the ending {ending} is not read.*{advice}"
    with pytest.raises(ValueError, match=message), make_plan([ImageFolder(tmp_path)], BuildSettings()):
        pass


@pytest.mark.parametrize("folder", ["", "train", "test"])
def test_a_list_of_unknown_columns_names_them_and_the_option(tmp_path: Path, folder: str) -> None:
    """In the folder, or in those of splits."""
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    Image.new("RGB", (16, 16)).save(place / "1.png")
    (place / "metadata.csv").write_text("file_name,beschreibung,artist\n1.png,x,y\n")
    (found,) = find_lists(tmp_path)
    message = r"Name the columns that hold them, among beschreibung, artist, as `--caption beschreibung=short`"
    with pytest.raises(ValueError, match=message), make_plan([ListedImages(found)], BuildSettings()):
        pass
