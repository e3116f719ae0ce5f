"""What `holistic-clip caption` refuses before a model is loaded or a server is asked: one sentence each."""

from pathlib import Path

import pytest
from PIL import Image

from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.cli.main import main
from holistic_clip_hf.storage import read_yaml


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, lists of them, and a model that may not be loaded."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(LocalBackend, "__init__", load)
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "empty", "notes", "model"):
        Path(name).mkdir()
    Image.new("RGB", (16, 16)).save("photos/a.png")
    Path("notes/a.md").write_text("no image")
    Path("list.csv").write_text("path,title\na.png,an a\n")
    Path("binary.csv").write_bytes(b"path,title\na.png,\xff\xfe\n")
    Path("mute.yaml").write_text("- {name: web, prompt: null, answer: {form: phrase}}")
    Path("words.yaml").write_text("- {name: a, prompt: What, answer: {min_words: 9, max_words: 3}}")
    Path("nothing.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("folder empty", "`source` is empty, which has no image; expected one or more. Correct the path."),
        ("folder notes", "Left out are the ending .md is not read (1)"),
        ("list list.csv --image-column nosuch --root photos", "nosuch"),
        ("list binary.csv --root photos", "binary.csv"),
        ("folder photos --perspectives web", "`--perspectives` has ['web'], which have no prompt"),
        ("folder photos --perspectives short short", "each name once"),
        ("folder photos --perspectives-file mute.yaml", "`--perspectives` is []; expected one or more"),
        ("folder photos --perspectives-file nothing.yaml", "nothing.yaml holds nothing; expected a list of"),
        ("folder photos --perspectives-file words.yaml", "`min_words` is 9; expected from 1 to `max_words`"),
        ("folder photos --perspective style", "`--perspective` is style; expected none"),
        ("folder photos --concurrency 2", "`--concurrency` is 2; expected none, since only a server heeds it"),
        ("folder photos --timeout 9", "`--timeout` is 9.0; expected none, since only a server"),
        ("folder photos --token-variable NOPE", "`--token-variable` is NOPE; expected none, since only a server"),
        ("folder photos --revision v1 --model model", "`--revision` is v1; expected none, since model is a folder"),
        ("folder photos --output photos/caps", "`--output` is photos/caps, which is inside the source photos"),
        ("list list.csv --root photos --output photos", "`--output` is photos, which is the source itself"),
    ],
)
def test_it_is_told_before_any_work(
    command: str, message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workplace.rglob("*"))
    given = ["caption", *command.split()]
    for option, value in (("--model", "m"), ("--output", "rows")):
        given += [] if option in given else [option, value]
    with pytest.raises(SystemExit) as ended:
        main(given)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1, said
    assert sorted(workplace.rglob("*")) == before


def test_a_model_of_another_kind_is_refused_in_few_words(tmp_path: Path) -> None:
    """transformers would list all kinds that there are."""
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="which cannot be loaded .*expected a model for image-text-to-text") as told:
        LocalBackend(str(tmp_path), batch_size=1)
    assert len(str(told.value)) < 800 + len(str(tmp_path))


def test_prompts_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{a: 1e3, b: '1e3', c: e3, d: 1e, e: 12, f: 1.5, g: 1e3x, h: no}")
    expected = {"a": 1000.0, "b": "1e3", "c": "e3", "d": "1e", "e": 12, "f": 1.5, "g": "1e3x", "h": False}
    assert read_yaml(tmp_path / "a.yaml") == expected
