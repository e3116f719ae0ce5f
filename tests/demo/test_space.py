"""The folder of a Space: what is in it and what is not, and that it starts as Spaces start it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from PIL import Image
from transformers import CLIPTokenizer

from conftest import draw, make_processor
from holistic_clip_hf import HolisticCLIPModel

gradio = pytest.importorskip("gradio")

import httpx  # noqa: E402

from demo_pages import fill  # noqa: E402
from holistic_clip_hf.cli.main import main  # noqa: E402
from holistic_clip_hf.corpus.build import build_corpus, corpus_features  # noqa: E402
from holistic_clip_hf.demo.showcase import open_showcase  # noqa: E402
from holistic_clip_hf.demo.space import write_space  # noqa: E402

WRITTEN = {"app.py", "requirements.txt", "README.md", "Dockerfile", ".dockerignore"}


@pytest.fixture(scope="module")
def workshop(
    make_model: Callable[..., HolisticCLIPModel],
    session_tokenizer: CLIPTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a checkpoint, drawings, and things beside them that are nobody's business."""
    place = tmp_path_factory.mktemp("workshop")
    make_model(perspectives=["short", "main_object", "style"]).save_pretrained(place / "checkpoint")
    make_processor(session_tokenizer).save_pretrained(place / "checkpoint")
    (place / "checkpoint" / "training_args.bin").write_bytes(b"a pickle")
    fill(place / "drawings", draw)
    for name in ("notes.txt", ".hidden.png", "broken.png"):
        (place / "drawings" / name).write_text("a secret")
    (place / "drawings" / "more").mkdir()
    draw("red", "square").save(place / "drawings" / "more" / "red.png")
    return place


@pytest.fixture(scope="module")
def space(workshop: Path) -> Path:
    checkpoint, drawings = str(workshop / "checkpoint"), str(workshop / "drawings")
    main(["demo", checkpoint, drawings, "--write-space", str(workshop / "space")])
    return workshop / "space"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_images_of_the_index_come_along_and_nothing_beside_them(space: Path, workshop: Path) -> None:
    names = files_in(space / "images")
    assert len(names) == 9 and "more/red.png" in names
    for name in names:
        assert (space / "images" / name).read_bytes() == (workshop / "drawings" / name).read_bytes()
    assert {name for name in files_in(space) if "/" not in name} == WRITTEN
    assert "training_args.bin" not in files_in(space / "checkpoint")


def test_nothing_names_a_folder_of_this_machine_or_a_secret(space: Path, workshop: Path) -> None:
    for name in files_in(space):
        content = (space / name).read_bytes()
        for private in (str(workshop), str(Path.home()), "a secret"):
            assert private.encode() not in content, (name, private)


def test_the_card_is_that_of_a_space(space: Path) -> None:
    card = SpaceCard.load(space / "README.md", ignore_metadata_errors=False)
    found = card.data.to_dict()
    assert found["sdk"] == "gradio" and found["sdk_version"] == gradio.__version__
    assert found["app_file"] == "app.py" and found["title"] and "models" not in found
    assert found["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "9 images" in card.text


def test_every_requirement_has_one_version_that_is_installed_here(space: Path) -> None:
    first, *rest = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    assert first.name == "holistic-clip-hf" and first.extras == {"demo"}
    assert first.url is None or re.fullmatch(r"https://github.com/\S+/archive/[0-9a-f]{40}\.zip", first.url)
    pins = {each.name: str(each.specifier) for each in rest}
    assert {"torch", "transformers", "gradio", "faiss-cpu", "pillow"} <= pins.keys()
    for name, pin in pins.items():
        assert pin == f"=={metadata.version(name).partition('+')[0]}"


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, with their continuations."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if re.match("[A-Z]", line)]


def health_check(space: Path) -> list[str]:
    """The words of the container's check."""
    (check,) = (value for name, value in instructions((space / "Dockerfile").read_text()) if name == "HEALTHCHECK")
    return json.loads(check[check.index("[") :])


def test_the_container_has_no_root_pinned_versions_and_a_health_check(space: Path) -> None:
    found = instructions((space / "Dockerfile").read_text())
    order = [name for name, _ in found]
    assert order[0] == "FROM" and order.count("FROM") == 1 and order[-1] == "CMD"
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim", found[0][1])
    users = [value for name, value in found if name == "USER"]
    assert users == ["1000"] and order.index("USER") < order.index("CMD")
    runs = " ".join(value for name, value in found if name == "RUN")
    assert "useradd --no-create-home --uid 1000 page" in runs
    assert "pip install --no-cache-dir -r requirements.txt" in runs and "apt" not in runs and "sudo" not in runs
    command = health_check(space)
    assert command[:2] == ["python", "-c"] and compile(command[2], "check", "exec")
    assert json.loads(found[-1][1]) == ["python", "app.py"]
    assert "ADD" not in order


def test_a_checkpoint_of_the_hub_is_named_and_not_copied(workshop: Path, tmp_path: Path) -> None:
    showcase = open_showcase(str(workshop / "checkpoint"), workshop / "drawings")
    written = write_space(showcase, "me/search", workshop / "drawings", tmp_path / "space")
    assert written.num_images == 9 and written.num_left_out == 1
    assert written.num_bytes == sum(
        (tmp_path / "space" / name).stat().st_size for name in files_in(tmp_path / "space")
    )
    assert not (tmp_path / "space" / "checkpoint").exists()
    assert '"me/search"' in (tmp_path / "space" / "app.py").read_text().replace("'", '"')
    assert SpaceCard.load(tmp_path / "space" / "README.md").data.models == ["me/search"]


def test_linked_images_come_along_as_files(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(workshop / "drawings" / "more")
    draw("blue", "circle").save(tmp_path / "linked" / "blue.png")
    showcase = open_showcase(str(workshop / "checkpoint"), tmp_path / "linked", follow_links=True)
    write_space(showcase, "me/search", tmp_path / "linked", tmp_path / "space")
    copied = tmp_path / "space" / "images" / "more" / "red.png"
    assert copied.read_bytes() == (workshop / "drawings" / "more" / "red.png").read_bytes()
    origin = json.loads((tmp_path / "space" / "images.index" / "index.json").read_text())["origin"]
    assert set(origin.values()) == {"folder", "images"} and "links" not in origin


def test_a_corpus_comes_along_as_it_would_be_published(workshop: Path, tmp_path: Path) -> None:
    rows = [
        {
            "image_id": f"{colour}.png",
            "image": Image.new("RGB", (32, 32), colour),
            "captions": [{"perspective": "short", "text": f"all {colour}", "source": "me"}],
        }
        for colour in ("red", "green", "blue")
    ]
    build_corpus(
        tmp_path / "corpus",
        {"all": lambda: rows},
        corpus_features(),
        fingerprint="v1",
        card=lambda manifest: "# Colours\n",
    )
    (tmp_path / "corpus" / "diary.md").write_text("a secret")
    showcase = open_showcase(str(workshop / "checkpoint"), tmp_path / "corpus")
    write_space(showcase, "me/search", tmp_path / "corpus", tmp_path / "space")
    names = files_in(tmp_path / "space" / "images")
    assert {"corpus.json", "README.md"} < names and "diary.md" not in names
    opened = open_showcase(str(workshop / "checkpoint"), tmp_path / "space" / "images")
    assert opened.index.image_ids == ["blue.png", "green.png", "red.png"]
    assert opened.captions["red.png"] == [("short", "all red")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write-space", "{workshop}/checkpoint"], "which holds .*; expected a new or empty folder, or a Space"),
        (["--write-space", "{workshop}/drawings/space"], "inside the source"),
        (["--write-space", "{workshop}/new", "--edit-captions", "c.jsonl"], "`--edit-captions` is c.jsonl beside"),
        (["--write-space", "{workshop}/new", "--port", "7861"], "`--port` is 7861 beside `--write-space`"),
    ],
)
def test_what_cannot_be_written_is_one_sentence_before_anything_is(
    workshop: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    given = [each.format(workshop=workshop) for each in options]
    with pytest.raises(SystemExit) as ended:
        main(["demo", str(workshop / "checkpoint"), str(workshop / "drawings"), *given])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and re.search(message, said[-1]), said
    assert not (workshop / "new").exists() and not (workshop / "drawings" / "space").exists()


def test_a_run_that_fails_leaves_nothing(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    showcase = open_showcase(str(workshop / "checkpoint"), workshop / "drawings")
    with pytest.raises(ValueError, match="no `config.json`"):
        write_space(showcase, str(tmp_path), workshop / "drawings", tmp_path / "below" / "space")
    assert files_in(tmp_path) == set()


@pytest.mark.slow
def test_it_starts_as_spaces_start_it_and_answers(space: Path, tmp_path: Path) -> None:
    home = tmp_path / "moved"
    space.rename(home)
    captions = (home / "images.index" / "captions.safetensors").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "SPACE_HOST": "me-search.hf.space"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        with subprocess.Popen(
            [sys.executable, "app.py"], cwd=home, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                page = f"http://127.0.0.1:{port}"
                named = {"Host": "me-search.hf.space"}
                for _ in range(300):
                    try:
                        found = httpx.get(page, headers=named)
                        break
                    except httpx.TransportError:
                        assert process.poll() is None, process.stderr and process.stderr.read()
                        time.sleep(0.5)
                assert found.status_code == 200 and "gradio" in found.text
                asked = {"query": "main object: a red square", "k": 3}
                answer = httpx.post(f"{page}/search", json=asked, headers=named, timeout=60)
                assert len(answer.json()["images"]) == 3
                check = [
                    value for name, value in instructions((home / "Dockerfile").read_text()) if name == "HEALTHCHECK"
                ]
                command = json.loads(check[0][check[0].index("[") :])
                code = command[2].replace("7860", str(port))
                assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
            finally:
                process.terminate()
                _, said = process.communicate(timeout=60)
        # Nothing was encoded: the index knows the images by their contents.
        assert "0 new, 0 changed, 0 gone, 9 as before; 0 left out" in said, said
        assert (home / "images.index" / "captions.safetensors").read_bytes() == captions
    finally:
        home.rename(space)
