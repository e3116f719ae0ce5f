"""Perspectives: the ones that come with the package, users' files, both gadgets of the paper, and what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from holistic_clip_hf.captioning.perspectives import DEFAULT_FILE, Answer, Perspective, asked, load_perspectives

# The paper's families: web text, detail, one sentence, few words, nouns, main object, background, style and
# feeling, relations.
FAMILIES = ["web", "detail", "one_sentence", "short", "nouns", "main_object", "background", "style", "relations"]

MIX = """
- {name: qwen, captioner: qwen/two, prompt: &detail "Describe it."}
- {name: llava, captioner: llava/one, prompt: *detail}
- {name: nouns, captioner: qwen/two, prompt: Name the things., answer: {form: list}}
- {name: short, prompt: In a few words., max_new_tokens: 20, temperature: 0.7, top_p: 0.9}
- {name: web, prompt: null}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_papers_families_come_with_the_package() -> None:
    perspectives = load_perspectives()
    assert [each.name for each in perspectives] == FAMILIES
    assert [each.name for each in asked(perspectives)] == FAMILIES[1:]
    assert len({each.prompt_hash for each in perspectives}) == len(FAMILIES)
    assert all(each.temperature == 0 for each in perspectives)  # the paper asks greedily
    assert {each.answer.form for each in perspectives} == {"sentences", "phrase", "list"}


def test_names_choose_and_order() -> None:
    assert [each.name for each in load_perspectives(names=["style", "detail"])] == ["style", "detail"]


def test_a_users_file(tmp_path: Path) -> None:
    qwen, llava, nouns, short, web = load_perspectives(write(tmp_path, MIX))
    assert qwen == Perspective("qwen", "Describe it.", captioner="qwen/two")
    assert llava.prompt == qwen.prompt and llava.prompt_hash == qwen.prompt_hash
    assert nouns.answer == Answer(form="list")
    assert (short.max_new_tokens, short.temperature, short.top_p, short.captioner) == (20, 0.7, 0.9, None)
    assert web.prompt is None


@pytest.mark.parametrize(
    ("captioner", "names"),
    [
        ("qwen/two", ["qwen", "nouns", "short"]),
        ("llava/one", ["llava", "short"]),
        ("another", ["short"]),
        (None, ["qwen", "llava", "nouns", "short"]),
    ],
)
def test_each_captioner_is_asked_its_own(tmp_path: Path, captioner: str | None, names: list[str]) -> None:
    perspectives = load_perspectives(write(tmp_path, MIX))
    assert [each.name for each in asked(perspectives, captioner)] == names


def test_the_hash_stands_for_the_question_and_nothing_else() -> None:
    """The digits are keys in files of rows: they may not change from release to release."""
    first = Perspective("a", "Was ist zu sehen? äöü", 12, 0.5, 0.9)
    expected = hashlib.sha256('["Was ist zu sehen? äöü", 12, 0.5, 0.9]'.encode()).hexdigest()[:12]
    assert first.prompt_hash == expected
    same = Perspective("b", "Was ist zu sehen? äöü", 12, 0.5, 0.9, Answer("list"), "somebody")
    assert same.prompt_hash == expected
    others = [("Was?", 12, 0.5, 0.9), (first.prompt, 13, 0.5, 0.9), (first.prompt, 12, 0.6, 0.9)]
    others.append((first.prompt, 12, 0.5, 0.8))
    assert expected not in {Perspective("a", *other).prompt_hash for other in others}
    assert Perspective("a", "b", temperature=0).prompt_hash == Perspective("a", "b", temperature=0.0).prompt_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing; expected a list of perspectives"),
        ("name: web", "holds no list; expected a list"),
        ("- [a", "is not valid YAML"),
        (b"- {name: \xff, prompt: b}", "is not valid YAML"),
        ("- !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("- web", "got 'web'; expected keys and values, with the keys answer, captioner"),
        (
            "- {name: a, prompt: b, tokens: 3}",
            r"unknown keys tokens. Did you mean max_new_tokens\? Valid keys: answer, captioner",
        ),
        ("- {name: a}", "missing keys prompt"),
        ("- {prompt: a}", "missing keys name"),
        ("- {name: a, prompt: b, answer: {shape: list}}", "`answer` of Perspective 0 .* unknown keys shape"),
        ("- {name: a, prompt: b, answer: list}", "`answer` of Perspective 0 .* got 'list'"),
        ("- {name: a, prompt: b}\n- {name: a, prompt: c}", r"got \['a'\] twice"),
        ("- {name: a, prompt: ' '}", "Perspective 0 .*: `prompt` is .*; expected a text or null"),
        ("- {name: 5, prompt: b}", "`name` is .*; expected a word"),
        ("- {name: a, prompt: b, captioner: ''}", "`captioner` is .*; expected a name or null"),
        ("- {name: a, prompt: b, max_new_tokens: 0}", "`max_new_tokens` is .*; expected at least 1"),
        ("- {name: a, prompt: b, max_new_tokens: true}", "`max_new_tokens` is .*; expected at least 1"),
        ("- {name: a, prompt: b, temperature: -1}", "`temperature` is .*; expected 0 or more"),
        ("- {name: a, prompt: b, temperature: .nan}", "`temperature` is .*; expected 0 or more"),
        ("- {name: a, prompt: b, top_p: 0}", "`top_p` is .*; expected above 0, at most 1"),
        ("- {name: a, prompt: b, top_p: '1'}", "`top_p` is .*; expected above 0, at most 1"),
        ("- {name: a, prompt: b, answer: {form: poem}}", "`form` is .*; expected one of sentences, phrase, list"),
        ("- {name: a, prompt: b, answer: {min_words: 0}}", "`min_words` is .; expected from 1 to `max_words`"),
        (
            "- {name: a, prompt: b, answer: {min_words: 9, max_words: 8}}",
            "`min_words` is .; expected from 1 to `max_words`",
        ),
        ("- {name: a, prompt: b, answer: {language: english}}", "`language` is .*; expected two small letters"),
        ("- {name: a, prompt: b, answer: {language: no}}", "between quotes if they are `no`"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_perspectives(write(tmp_path, text))


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=f"which is not a file; expected YAML as in {DEFAULT_FILE}"):
            load_perspectives(path)
    with pytest.raises(ValueError, match=r"`names` has \['colour'\]; expected some of web, detail"):
        load_perspectives(names=["detail", "colour"])


@pytest.mark.parametrize("fields", [{"max_new_tokens": 1.5}, {"temperature": float("inf")}, {"answer": {}}])
def test_what_is_made_in_code_is_checked_too(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}` is"):
        Perspective("a", "b", **fields)
