"""A checkpoint to a Hub on loopback, and from there to people who never heard of this package."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load
from transformers import CLIPConfig, CLIPModel

from conftest import WITHOUT_THE_PACKAGE
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.checkpoint_files import CALIBRATION_FILE
from holistic_clip_hf.evaluation.calibration import (
    Calibration,
    ScoreCalibration,
    load_calibration,
    save_calibration,
)
from holistic_clip_hf.evaluation.records import Recorder, capture_provenance, save_records
from holistic_clip_hf.publishing import stranger
from holistic_clip_hf.publishing.checkpoint import VerificationError, stage, verify
from holistic_clip_hf.publishing.hub import publish, require_publishable
from holistic_clip_hf.publishing.inventory import TRAVELLING_FILES
from holistic_clip_hf.publishing.model_card import CardFacts, save_facts
from holistic_clip_hf.publishing.push import Destination, PublishingError
from hub_answers import TOKEN
from hub_server import LoopbackHub, connect, run_client
from hub_storage import Blob, Repository

CLIP = Destination("ada/clip", token=TOKEN)
FACTS = CardFacts("ada/clip", "clip", license="apache-2.0")
TEXTS = ["a red square", "a blue circle"]

PUBLISH = """
import json, sys, torch
from dataclasses import asdict
from holistic_clip_hf.publishing.hub import publish
from holistic_clip_hf.publishing.push import Destination
torch.set_num_threads(1)
made = publish(sys.argv[1], Destination("clip", private=True, tag="v1"), max_shard_size="100KB")
print(json.dumps(asdict(made)))
"""

PULL = (
    WITHOUT_THE_PACKAGE
    + """
import json, sys, torch
from transformers import AutoModel, AutoProcessor
torch.set_num_threads(1)
try:
    AutoModel.from_pretrained("ada/clip")
except ValueError as error:
    refusal = str(error)
model = AutoModel.from_pretrained("ada/clip", trust_remote_code=True, revision="v1")
processor = AutoProcessor.from_pretrained("ada/clip", trust_remote_code=True, revision="v1")
with torch.inference_mode():
    found = model.get_text_features(**processor(text=json.loads(sys.argv[1]), return_tensors="pt")).pooler_output
print()  # after the question that nobody answers
print(json.dumps([found.tolist(), refusal, type(model).__module__, processor.write_caption("yellow", "colour")]))
"""
)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=["short", "colour", "shape"])


@pytest.fixture
def checkpoint(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def online(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    connect(hub, monkeypatch, tmp_path)
    return hub


def test_from_push_to_pull(
    hub: LoopbackHub, checkpoint: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    """With the unmodified clients, in processes of their own."""
    (checkpoint / "training_args.bin").write_bytes(b"a pickle")
    processor.caption_form, processor.caption_perspectives = "{perspective}: {text}", ["colour"]
    processor.save_pretrained(checkpoint)
    published = json.loads(run_client(hub, PUBLISH, checkpoint, home=tmp_path / "ada").splitlines()[-1])
    repository = hub.repositories["model", "ada/clip"]
    main = repository.at("main")
    assert published["commit"] == main.oid == repository.at("v1").oid
    assert [commit.title for commit in repository.history("main")] == ["Publish clip", "initial commit"]
    assert repository.private and set(main.files) == {*published["files"], ".gitattributes"}
    shards = [name for name in main.files if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert {*TRAVELLING_FILES, "config.json", "processor_config.json", "README.md"} < set(main.files)
    assert not {"training_args.bin"} & set(main.files)
    weights = {name: value for shard in shards for name, value in load(main.files[shard].content).items()}
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert str(tmp_path).encode() not in b"".join(blob.content for blob in main.files.values())  # of no machine
    pulled = run_client(hub, PULL, json.dumps(TEXTS), home=tmp_path / "b").splitlines()[-1]
    found, refusal, module, written = json.loads(pulled)
    assert written == "colour: yellow" and b"`{perspective}: {text}`" in main.files["README.md"].content
    assert "trust_remote_code=True" in refusal and module.startswith("transformers_modules.ada.clip.")
    with torch.inference_mode():
        expected = model.get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_dry_run_asks_nobody(online: LoopbackHub, checkpoint: Path) -> None:
    shown = publish(checkpoint, CLIP, facts=FACTS, dry_run=True)
    assert not online.requests and shown.commit is None
    assert shown.files["model.safetensors"] == (checkpoint / "model.safetensors").stat().st_size
    assert {"README.md", "tokenizer.json", *TRAVELLING_FILES} < set(shown.files)


@pytest.mark.slow
def test_what_was_pushed_is_told_when_it_cannot_be_pulled(online: LoopbackHub, checkpoint: Path) -> None:
    online.break_at("content", cut="middle", times=40)
    with pytest.raises(
        PublishingError, match=r"On the Hub is ada/clip, commit \w{40}, whole, but it could not be pulled again"
    ):
        publish(checkpoint, CLIP, facts=FACTS)
    assert len(online.repositories["model", "ada/clip"].commits) == 2


@pytest.mark.slow
def test_a_checkpoint_that_gives_other_numbers_is_not_pushed(checkpoint: Path, tmp_path: Path) -> None:
    stage(checkpoint, tmp_path / "staged", FACTS)
    expected = stranger.measure(str(checkpoint))
    expected["branches"][3] += 1e-3
    with pytest.raises(VerificationError, match=r"`branches` differs from the checkpoint's: 1 of \d+ numbers"):
        verify(tmp_path / "staged", expected, scratch=tmp_path / "scratch")


@pytest.mark.slow
def test_code_that_needs_the_package_is_not_pushed(checkpoint: Path, tmp_path: Path) -> None:
    stage(checkpoint, tmp_path / "staged", FACTS)
    with (tmp_path / "staged" / "processing_holistic_clip.py").open("a") as code:
        code.write("\ntry:\n    import holistic_clip_hf\nexcept ImportError:\n    pass\n")
    with pytest.raises(VerificationError, match="(?s)does not load without this package:.*imports holistic_clip_hf"):
        verify(tmp_path / "staged", {}, scratch=tmp_path / "scratch")


def test_staging_again_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(checkpoint / "shape.png")
    facts = CardFacts("ada/clip", "clip", pictures={"shape": "shape.png"})
    first, again = stage(checkpoint, tmp_path / "one", facts), stage(tmp_path / "one", tmp_path / "two", facts)
    assert first == again
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in first)


def other_clip(folder: Path) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=tower)).save_pretrained(folder)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no `config.json`"),
        (other_clip, "model of type 'clip'.*See `holistic_clip_hf.initialization`"),
        (pickled, "holds no weights in safetensors"),
    ],
)
def test_checkpoints_that_are_none_of_ours(
    online: LoopbackHub, checkpoint: Path, change: Callable[[Path], None], message: str
) -> None:
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        publish(checkpoint, CLIP, facts=FACTS)
    assert not online.requests


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "card_facts.json", "results.json", "shape.png"])
def test_a_link_is_not_published(online: LoopbackHub, checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Even to a file of the right kind: it may be anybody's."""
    elsewhere = tmp_path / "elsewhere"
    (checkpoint / "results.json").write_text("[]")
    save_facts(checkpoint / "card_facts.json", CardFacts("ada/clip", "clip", pictures={"shape": "shape.png"}))
    Image.new("RGB", (3, 2), "red").save(checkpoint / "shape.png")
    (checkpoint / name).rename(elsewhere)
    (checkpoint / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link; expected a file of its own"):
        publish(checkpoint, CLIP)
    assert not online.requests


def test_a_calibration_comes_along_if_it_is_sound(checkpoint: Path, tmp_path: Path) -> None:
    scores = {"fused": ScoreCalibration(-1.0, 2.0, 0.5, -1.0, 50, 20, 0.1)}
    saved = Calibration("abc", {"fusion": "mean"}, "emoji", "validation", scores)
    save_calibration(checkpoint / CALIBRATION_FILE, saved)
    assert CALIBRATION_FILE in stage(checkpoint, tmp_path / "staged", CardFacts("ada/clip", "clip"))
    assert load_calibration(tmp_path / "staged") == saved
    (checkpoint / CALIBRATION_FILE).write_text("{}")
    with pytest.raises(ValueError, match="is not a calibration"):
        stage(checkpoint, tmp_path / "again", CardFacts("ada/clip", "clip"))


def test_a_picture_that_is_something_else_is_not_staged(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "shape.png").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    with pytest.raises(ValueError, match="shape.png is not a PNG by its bytes"):
        stage(checkpoint, tmp_path / "staged", CardFacts("ada/clip", "clip", pictures={"shape": "shape.png"}))
    assert not (tmp_path / "staged" / "shape.png").exists()


def test_commands_of_records_are_published_without_folders_and_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    provenance = capture_provenance(model="clip", dataset="squares", split="test", seed=0)
    command = f"holistic-clip evaluate --model {tmp_path}/clip --token hf_abcdefghijklmnop"
    record = Recorder(replace(provenance, command=command), "retrieval").record("recall", 0.5, {"k": 5}, {})
    save_records(checkpoint / "results.json", [record])
    stage(checkpoint, tmp_path / "staged", CardFacts("ada/clip", "clip"))
    for name in ("results.json", "README.md"):
        said = (tmp_path / "staged" / name).read_text()
        assert "holistic-clip evaluate --model .../clip --token ..." in said
        assert str(tmp_path) not in said and "hf_abc" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_staged_weights(checkpoint: Path, tmp_path: Path, signum: int, code: int) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "holistic_clip_hf", "publish", str(checkpoint), "ada/clip", "--dry-run"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(temporary.glob("publish-*/staged/model.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and "publish: stopped" in said
    assert not list(temporary.iterdir())


STAGING = """
import os, signal, sys
from holistic_clip_hf.publishing import hub
hub.stage = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
hub.publish(sys.argv[1], "ada/clip", dry_run=True)
"""


def test_sigterm_leaves_no_folder_of_python_either(checkpoint: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", STAGING, str(checkpoint)]
    ran = subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True)
    assert ran.returncode != 0 and "Stopped" in ran.stderr
    assert not list(temporary.glob("publish-*"))


def test_a_picture_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The card shows '\.\./secret\.png', which is not a file in"):
        stage(checkpoint, tmp_path / "staged", CardFacts("ada/clip", "clip", pictures={"a": "../secret.png"}))


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_to_stage(checkpoint: Path, tmp_path: Path) -> None:
    with file_size_limit(50_000), pytest.raises(OSError, match="weights could not be written.*Nothing was sent"):
        stage(checkpoint, tmp_path / "staged", FACTS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b'{"model_type": "bert"}'}, "is the repository of a model of type 'bert'"),
        ({"config.json": b"{}"}, "is the repository of a model of type None"),
        ({"pytorch_model.bin": b""}, "do not belong beside what is pushed: pytorch_model.bin"),
    ],
)
def test_repositories_of_something_else(online: LoopbackHub, files: dict[str, bytes], message: str) -> None:
    theirs = Repository("model", "ada/clip")
    theirs._add("refs/heads/main", None, "theirs", {name: Blob(content, False) for name, content in files.items()})
    online.repositories["model", "ada/clip"] = theirs
    before = dict(theirs.refs)
    with pytest.raises(ValueError, match=message):
        require_publishable(CLIP)
    assert theirs.refs == before and {method for _, method, _ in online.requests} <= {"GET", "HEAD"}


def test_nothing_is_staged_over_files_of_others(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="`output` is .*mine, which holds README.md; expected a new or empty folder"):
        stage(checkpoint, tmp_path / "mine", FACTS)
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    with pytest.raises(ValueError, match="`output` is .*, which is the source itself"):
        stage(checkpoint, checkpoint, FACTS)
