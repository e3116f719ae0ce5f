"""JSON that names a key twice, of which Python keeps the last: refused, or its row left out, by one door."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from holistic_clip_hf.captioning.store import CaptionStore
from holistic_clip_hf.checkpoint_files import require_loadable
from holistic_clip_hf.cli.caption import read_object
from holistic_clip_hf.corpus.build import read_manifest
from holistic_clip_hf.evaluation.records import load_records
from holistic_clip_hf.images.records import read_records
from holistic_clip_hf.publishing.model_card import load_facts
from holistic_clip_hf.search.store import read_index_manifest
from holistic_clip_hf.storage import RepeatedKeyError, parse_json, read_yaml

PACKAGE = Path(__file__).parents[2] / "holistic_clip_hf"
# What this package wrote itself into a database or a file's head, and what servers and captioners answer.
OWN_OR_SPOKEN = {
    *("captioning/chat_server.py", "captioning/unwrapping.py", "captioning/weights.py", "corpus/plan.py"),
    *(
        "demo/captions.py",
        "demo/guard.py",
        "images/sources.py",
        "publishing/checkpoint.py",
        "evaluation/fingerprints.py",
    ),
    *("locks.py", "storage.py", "trainer/callbacks.py", "trainer/recipes.py", "corpus/build.py", "search/store.py"),
    *("evaluation/fingerprints.py", "images/records.py", "trainer/resuming.py"),
}


def test_any_key_at_any_depth() -> None:
    assert parse_json('{"a": {"b": [1, {"c": 2}]}, "b": 1}') == {"a": {"b": [1, {"c": 2}]}, "b": 1}
    for text in ('{"a": 1, "a": 1}', '[{"b": {"a": 1,\n"a": 2}}]', '{"\\u0061": 1, "a": 2}'):
        with pytest.raises(RepeatedKeyError, match="the key 'a' stands twice: line") as raised:
            parse_json(text)
        assert pickle.loads(pickle.dumps(raised.value)).key == raised.value.key


@pytest.mark.parametrize(
    ("name", "text", "read", "message"),
    [
        ("card_facts.json", '{"repo_id": "a/b", "model_name": "b", "license": "x", "license": "y"}', load_facts, None),
        ("results.json", '[{"value": 1, "value": 2}]', load_records, None),
        ("corpus.json", '{"rows": 1, "rows": 2}', lambda path: read_manifest(path.parent), "corpus.json is damaged"),
        ("index.json", '{"format": 1, "format": 1}', lambda path: read_index_manifest(path.parent), None),
        ("config.json", '{"fusion": "mean", "fusion": "max"}', lambda path: require_loadable(path.parent, "a"), None),
        ("recipe.yaml", "fusion: mean\nfusion: max\n", read_yaml, "stands in line 1, too"),
        ("option", '{"a": 1, "a": 2}', lambda path: read_object(path.read_text(), "--extra-body"), "is '{"),
    ],
)
def test_files_are_refused(
    tmp_path: Path, name: str, text: str, read: Callable[[Path], object], message: str | None
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message or "stands twice"):
        read(tmp_path / name)


@pytest.mark.parametrize("form", ["{}\n{}\n", "[{}, {}]"])
def test_a_row_of_a_list_is_left_out_with_its_reason(tmp_path: Path, form: str) -> None:
    good, bad = '{"image": "a.png", "caption": "a cat"}', '{"image": "b.png", "caption": "a dog", "caption": "b"}'
    for rows in ((good, bad), (bad, good)):
        (tmp_path / "list.json").write_text(form.replace("{}", "%s") % rows)
        found = [record for _, record in read_records(tmp_path / "list.json")]
        assert sorted(found, key=str) == sorted(
            [json.loads(good), "a key stands twice in its JSON: 'caption'"], key=str
        )


def test_an_object_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"a.png": "a cat", "a.png": "a dog"}')
    with pytest.raises(ValueError, match="not valid JSON .*the key 'a.png' stands twice"):
        list(read_records(tmp_path / "list.json"))


def test_a_caption_row_is_none(tmp_path: Path) -> None:
    store = CaptionStore(tmp_path)
    fields = ["image_id", "perspective", "source", "prompt_hash", "text", "status", "weights"]
    (tmp_path / "00000000.0-of-1.jsonl").write_text(
        "{" + ", ".join(f'"{name}": "x"' for name in [*fields, "text"]) + "}\n"
    )
    assert list(store.rows()) == []


def test_other_files_read_no_json_of_people_by_themselves() -> None:
    reading = re.compile(r"json\.loads?\(|JSONDecoder")
    found = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if reading.search(path.read_text())
    }
    assert found <= OWN_OR_SPOKEN, found - OWN_OR_SPOKEN
