"""A poisoned folder is refused with the reason, before anything in it is loaded; a whole one passes."""

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import holistic_clip_hf
from holistic_clip_hf import (
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPProcessor,
    HolisticCLIPVisionModel,
)
from holistic_clip_hf.checkpoint_files import MAX_HEADER_BYTES
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.initialization import from_holistic_clip
from holistic_clip_hf.publishing import stranger
from holistic_clip_hf.publishing.checkpoint import require_checkpoint, stage
from holistic_clip_hf.publishing.inventory import (
    ALLOWED_FILES,
    TOWERS_FILE,
    TRAVELLING_FILES,
    require_own_code,
    require_png,
    require_safe_folder,
)
from holistic_clip_hf.publishing.model_card import CardFacts
from holistic_clip_hf.trainer.finetuning import read_base

MakeModel = Callable[..., HolisticCLIPModel]
CODE = "modeling_holistic_clip.py"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_model().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(saved, folder)
    processor.save_pretrained(folder)
    return folder


def edit(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def safetensors(header: Any, body: bytes = b"\0" * 16) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="is not safe to load or to publish") as caught:
        require_safe_folder(folder)
    return str(caught.value)


def test_the_list_names_the_code_of_this_package() -> None:
    package = Path(holistic_clip_hf.__file__).parent
    of_other_programs = [TOWERS_FILE, "multivector_holistic_clip.py"]
    found = sorted(path.name for path in package.glob("*_holistic_clip.py"))
    assert sorted([*TRAVELLING_FILES, *of_other_programs]) == found


def test_what_is_saved_and_published_passes(checkpoint: Path) -> None:
    for name in ("README.md", "results.json", "LICENSE", ".gitattributes"):
        (checkpoint / name).write_text("[]")
    Image.new("RGB", (3, 2), "red").save(checkpoint / "results.png")
    (checkpoint / ".eval_results").mkdir()
    (checkpoint / ".eval_results" / "emoji.yaml").write_text("[]")
    files = require_safe_folder(checkpoint)
    assert files == sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    assert {*TRAVELLING_FILES, "config.json", "model.safetensors", ".eval_results/emoji.yaml"} <= set(files)
    require_own_code(checkpoint)


def test_shards_and_a_classifier_pass(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert INDEX in require_safe_folder(tmp_path / "shards")
    config = make_model().config
    HolisticCLIPForImageClassification(config).save_pretrained(tmp_path / "classifier")
    require_safe_folder(tmp_path / "classifier")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("setup.py", "setup.py is code that is not the model's"),
        ("modeling_other_holistic_clip.py", "is code that is not the model's"),
        ("__pycache__/modeling_holistic_clip.cpython-311.pyc", "is code that is not the model's"),
        ("nested/modeling_holistic_clip.py", "is code that is not the model's"),
        ("loss.so", "is code that is not the model's"),
        ("pytorch_model.bin", "may hold a pickle"),
        ("training_args.bin", "may hold a pickle"),
        ("optimizer.PT", "may hold a pickle"),
        ("state.pkl", "may hold a pickle"),
        ("adapter_config.json", "would have transformers load another repository"),
        ("chat_template.jinja", "is not on the list"),
        ("results.png.exe", "is not on the list"),
        (".env", "is not on the list"),
    ],
)
def test_a_file_too_many(checkpoint: Path, name: str, reason: str) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text("{}")
    assert reason in refusal(checkpoint) and name in refusal(checkpoint)


def test_links_and_devices(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "folder").mkdir()
    os.remove(checkpoint / "tokenizer.json")
    (checkpoint / "tokenizer.json").symlink_to(tmp_path / "secret")
    (checkpoint / ".eval_results").symlink_to(tmp_path / "folder")
    os.mkfifo(checkpoint / "results.json")
    message = refusal(checkpoint)
    assert f"tokenizer.json is a symbolic link, to {tmp_path / 'secret'}" in message
    assert f".eval_results is a symbolic link, to {tmp_path / 'folder'}" in message
    assert "results.json is not a regular file" in message


def test_links_of_the_hubs_cache_pass_and_others_in_it_do_not(checkpoint: Path, tmp_path: Path) -> None:
    """`models--owner--name/snapshots/<commit>/config.json` is a link to `../../blobs/<hash>`."""
    repository = tmp_path / "models--someone--emoji"
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert require_safe_folder(snapshot) == sorted(path.name for path in checkpoint.iterdir())
    (tmp_path / "outside.json").write_text("{}")
    os.remove(snapshot / "config.json")
    (snapshot / "config.json").symlink_to(tmp_path / "outside.json")
    assert "config.json is a symbolic link" in refusal(snapshot)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "JPEG")
    return file.getvalue()


PICTURES = {
    "a key": (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "is not a PNG by its bytes"),
    "a JPEG": (jpeg(), "is not a PNG by its bytes"),
    "cut": (png()[:-1], "is not a PNG by its bytes"),
    "more behind it": (png() + b"PK\x03\x04", "is not a PNG by its bytes"),
    "no head": (png()[:8] + png()[33:], "is not a PNG by its bytes"),
    "a length that leads on": (png()[:8] + b"\xff\xff\xff\xff" + png()[12:], "is not a PNG by its bytes"),
    "signature alone": (png()[:8], "is not a PNG by its bytes"),
    "too large": (png() + bytes(20_000_000), "expected at most 20,000,000 for a picture"),
}


@pytest.mark.parametrize(("content", "reason"), PICTURES.values(), ids=PICTURES)
def test_a_picture_is_a_png_by_its_bytes(checkpoint: Path, content: bytes, reason: str) -> None:
    require_png_of(checkpoint, png())
    (checkpoint / "results.png").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        require_png(checkpoint / "results.png")
    assert reason in refusal(checkpoint)


def require_png_of(folder: Path, content: bytes) -> None:
    (folder / "results.png").write_bytes(content)
    require_png(folder / "results.png")


UNLOADABLE = {
    "attention": ("config.json", {"attn_implementation": "evil/kernel"}, "takes attention from 'evil/kernel'"),
    "attention of a tower": ("config.json", {"text_config": {"_attn_implementation": "e/k"}}, "takes attention from"),
    "weights": ("config.json", {"transformers_weights": "../x.safetensors"}, "takes weights from '../x"),
    "a pipeline": ("processor_config.json", {"custom_pipelines": {}}, "`custom_pipelines`"),
    "an adapter": ("adapter_config.json", {"base_model_name_or_path": "evil/base"}, "has another repository loaded"),
}


@pytest.mark.parametrize(("name", "settings", "reason"), UNLOADABLE.values(), ids=UNLOADABLE)
def test_what_would_load_something_else_is_refused_before_loading(
    checkpoint: Path, name: str, settings: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every verb that takes a checkpoint; nothing asks whether to run code."""
    (checkpoint / name).touch()
    (checkpoint / name).write_text(json.dumps({**json.loads((checkpoint / name).read_text() or "{}"), **settings}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    for option, load in {
        "model": load_checkpoint,
        "checkpoint": require_checkpoint,
        "base": lambda folder: read_base(str(folder)),
    }.items():
        with pytest.raises(ValueError, match=f"`{option}` is .*, which is not safe to load: {name}.*{reason}"):
            load(checkpoint)


@pytest.mark.parametrize("kept", ["nothing", "all but one", "all but branches"])
def test_a_checkpoint_without_some_of_its_weights_is_refused(checkpoint: Path, tmp_path: Path, kept: str) -> None:
    """Also of branches, which a CLIP lacks and which are drawn at random if asked for."""
    weights = load_file(checkpoint / "model.safetensors")
    names = {"nothing": [], "all but one": [name for name in weights if name != "logit_scale"]}
    names["all but branches"] = [name for name in weights if "branch_" not in name]
    save_file({name: weights[name] for name in names[kept]}, checkpoint / "model.safetensors", {"format": "pt"})
    for load in (
        load_checkpoint,
        lambda folder: stage(folder, tmp_path / "staged", CardFacts("ada/clip", "clip")),
        lambda folder: from_holistic_clip(folder, perspectives=["detail", "new"]),
    ):
        with pytest.raises(ValueError, match="lacks the weights"):
            load(checkpoint)


@pytest.mark.parametrize("place", ["attn_implementation", "_attn_implementation", "text_config", "vision_config"])
def test_attention_of_a_repository_is_refused_by_the_classes_themselves(checkpoint: Path, place: str) -> None:
    value = {"attn_implementation": "evil/kernel"} if place.endswith("config") else "evil/kernel"
    config = json.loads((checkpoint / "config.json").read_text())
    edit(checkpoint / "config.json", **{place: {**config[place], **value} if isinstance(value, dict) else value})
    tower = [HolisticCLIPVisionModel] if place == "vision_config" else []  # which reads no more
    for kind in (AutoConfig, AutoModel, HolisticCLIPModel, *tower):
        with pytest.raises(ValueError, match="attn_implementation` of the checkpoint is 'evil/kernel', which is code"):
            kind.from_pretrained(checkpoint)


def test_code_beside_a_checkpoint_is_neither_run_nor_asked_about(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (checkpoint / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: ...\n")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        kinds = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")
        edit(checkpoint / name, auto_map=dict.fromkeys(kinds, "evil.C"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    load_checkpoint(checkpoint)
    read_base(str(checkpoint))
    with pytest.raises(ValueError, match="takes code from 'evil.C'"):
        stage(checkpoint, tmp_path / "staged", CardFacts("ada/clip", "clip"))
    stranger.measure(str(checkpoint), trust_remote_code=False)
    assert not (tmp_path / "ran").exists()


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
WEIGHTS = {
    "truncated": (safetensors({"a": F32})[:-1], "is damaged"),
    "longer than announced": (safetensors({"a": F32}) + b"0", "is damaged"),
    "header behind the end": (struct.pack("<Q", 5_000_000) + b"{}", "is damaged"),
    "header of a terabyte": (struct.pack("<Q", 2**40) + b"{}", "header has 1,099,511,627,776 bytes"),
    "header just too large": (safetensors(b" " * (MAX_HEADER_BYTES + 1)), "its header has"),
    "header no JSON": (safetensors(b"import os;"), "is damaged"),
    "overlapping": (safetensors({"a": F32, "b": {**F32, "data_offsets": [8, 16], "shape": [2]}}), "is damaged"),
    "beyond the end": (safetensors({"a": {**F32, "shape": [8], "data_offsets": [0, 32]}}), "is damaged"),
    "of another size": (safetensors({"a": {**F32, "shape": [5]}}), "is damaged"),
    "size that overflows": (safetensors({"a": {**F32, "shape": [2**63, 2**63]}}), "is damaged"),
    "empty": (b"", "is damaged"),
    "a pickle": (b"\x80\x02cos\nsystem\nq\x00." * 4, "is not a safetensors file"),
}


@pytest.mark.parametrize(("content", "reason"), WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights(checkpoint: Path, content: bytes, reason: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    assert reason in refusal(checkpoint)


@pytest.mark.parametrize("shard", ["../model-00001-of-00001.safetensors", "/etc/passwd", "..\\x.safetensors", "a/b"])
def test_an_index_that_leaves_the_folder(checkpoint: Path, shard: str) -> None:
    os.remove(checkpoint / "model.safetensors")
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"logit_scale": shard}}))
    assert f"takes weights from {shard!r}, which is not a shard in this folder" in refusal(checkpoint)


def test_shards_that_do_not_fit_their_index(checkpoint: Path) -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    save_file({"a": torch.ones(1)}, checkpoint / first)
    assert f"{first} is a shard without {INDEX}" in refusal(checkpoint)
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"b": second}}))
    message = refusal(checkpoint)
    assert f"takes weights from {second}, which is not there" in message
    assert f"takes no weight from {first}" in message
    assert "model.safetensors stands beside" in message
    for wrong in ([], {"weight_map": ["a"]}, {"weight_map": {"a": 1}}):
        (checkpoint / INDEX).write_text(json.dumps(wrong))
        assert "has no `weight_map` from weights to files" in refusal(checkpoint)


SETTINGS = {
    "code of another repository": ({"auto_map": {"AutoModel": "evil/repo--modeling.Model"}}, "takes code from 'evil"),
    "the model's name elsewhere": ({"auto_map": {"AutoModel": f"evil/x--{CODE[:-3]}.M"}}, "takes code from 'evil"),
    "code above the folder": ({"auto_map": {"AutoModel": "../modeling_holistic_clip.M"}}, "takes code from '../"),
    "one of two tokenizers": ({"auto_map": {"AutoTokenizer": [None, "evil.T"]}}, "takes code from 'evil.T'"),
    "as older releases wrote it": ({"auto_map": ["evil.T", None]}, "takes code from 'evil.T'"),
    "nested": ({"vision_config": {"auto_map": {"AutoConfig": "evil.C"}}}, "takes code from 'evil.C'"),
    "a pipeline": ({"custom_pipelines": {"x": {"impl": "evil.P"}}}, "`custom_pipelines`"),
    "weights of another name": ({"transformers_weights": "../x.safetensors"}, "takes weights from '../x"),
    "attention from the Hub": ({"_attn_implementation": "evil/kernel"}, "takes attention from 'evil/kernel'"),
    "attention of a tower": ({"attn_implementation": {"vision_config": "e/k"}}, "takes attention from"),
    "a file above": ({"vocab_file": "../../etc/passwd"}, "points outside the folder: `vocab_file`"),
    "a file by its root": ({"x": [{"tokenizer_file": "/etc/passwd"}]}, "points outside the folder"),
    "a file of Windows": ({"vocab_file": "C:\\x"}, "points outside the folder"),
}


@pytest.mark.parametrize(("settings", "reason"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_settings_that_reach_elsewhere(checkpoint: Path, name: str, settings: dict[str, Any], reason: str) -> None:
    edit(checkpoint / name, **settings)
    message = refusal(checkpoint)
    assert name in message and reason in message


def test_settings_that_do_not(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", special_tokens_map_file="./special_tokens_map.json", vocab_file=None)
    edit(checkpoint / "config.json", _attn_implementation="sdpa")
    require_safe_folder(checkpoint)


def test_files_that_are_not_what_their_names_say(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("[1]")
    (checkpoint / "tokenizer.json").write_text("[" * 100_000)
    (checkpoint / CODE).write_text("#" * 1_000_001)
    message = refusal(checkpoint)
    for expected in ("config.json holds no settings", "tokenizer.json is not JSON", "has 1,000,001 bytes"):
        assert expected in message


def test_code_that_is_not_there_or_not_ours(checkpoint: Path) -> None:
    with (checkpoint / CODE).open("a") as file:
        file.write("# changed\n")
    require_safe_folder(checkpoint)  # an older release's code differs too
    with pytest.raises(ValueError, match=f"{CODE} differs from this package's"):
        require_own_code(checkpoint)
    os.remove(checkpoint / CODE)
    assert "takes code from modeling_holistic_clip.py (`auto_map`), which is not there" in refusal(checkpoint)
    with pytest.raises(ValueError, match=f"lacks {CODE}"):
        require_own_code(checkpoint)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        require_safe_folder(tmp_path / "nothing")


def test_every_kind_of_file_says_what_it_is() -> None:
    assert all(ALLOWED_FILES.values())
