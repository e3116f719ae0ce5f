"""Every command that the documents give for the Hub, run as it stands there against a Hub on loopback."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.build import build_corpus
from hub_server import LoopbackHub, client_environment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = "docs/publishing.md"
RUN, CORPUS, MODEL, ROWS = "runs/emoji/holistic", "photos-corpus", "ada/holistic-clip-emoji", "ada/photo-captions"
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Language and code, in the order of the document."""
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    return [(block[1], block[2]) for block in BLOCK.finditer(text)]


def commands() -> list[list[str]]:
    """Each command once; `someone` is Ada, whose token it is."""
    found = []
    for language, code in blocks():
        code = code.replace("someone/", "ada/")
        if language == "python":
            found.append([sys.executable, "-c", f"from transformers import AutoModel\n{code}"])
        else:
            found += [[sys.executable, "-m", "holistic_clip_hf", *shlex.split(line)[1:]] for line in code.splitlines()]
    return [command for place, command in enumerate(found) if command not in found[:place]]


@pytest.fixture
def workplace(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Path:
    """A checkout's folder with the run and the corpus that the documents speak of."""
    for part in (make_model(perspectives=["short", "colour", "shape"]), processor):
        part.save_pretrained(tmp_path / RUN)
    card = "---\nlicense: cc0-1.0\n---\n\n# Drawings\n"
    shards = {"all": corpus.__iter__}
    build_corpus(tmp_path / CORPUS, shards, corpus.features, fingerprint="v1", card=lambda manifest: card)
    for name in ("training", "holistic_clip_hf"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(hub: LoopbackHub, command: list[str], workplace: Path) -> str:
    environment = client_environment(hub, workplace / "home")
    ran = subprocess.run(
        command,
        cwd=workplace,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, f"{command}\n{ran.stderr[-3000:]}"
    return ran.stdout


def test_the_documents_have_commands() -> None:
    assert {language for language, _ in blocks()} == {"bash", "python"}


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[1:])[-60:])
def test_a_command_runs(hub: LoopbackHub, workplace: Path, command: list[str]) -> None:
    """What pulls finds what was pushed before; what pushes finds nothing there."""
    pulls = "publish" not in command
    if pulls:
        hub.add_folder("model", MODEL, workplace / RUN, private=True).add_tag("v1", "main")
        hub.add_folder("dataset", ROWS, workplace / CORPUS)
    printed = run(hub, command, workplace)
    if "--dry-run" in command:
        assert not hub.requests and "bytes in" in printed and "Nothing was sent" in printed
    elif not pulls:
        ((kind, name), repository) = next(iter(hub.repositories.items()))
        assert (kind, name) == (("model", MODEL) if RUN in command else ("dataset", ROWS))
        assert repository.at("main").oid in printed and repository.private == ("--private" in command)
        assert ("refs/tags/v1" in repository.refs) == ("--tag" in command)
