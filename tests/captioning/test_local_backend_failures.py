"""What a local captioner does with images that fail, little memory, and models that are none for it."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from holistic_clip_hf.captioning.captioner import Reply, Work
from holistic_clip_hf.captioning.local_backend import LocalBackend, _missing_package
from holistic_clip_hf.captioning.perspectives import Perspective, load_perspectives
from tiny_captioner import make_tiny_captioner, make_tiny_qwen2_vl

ASKED = [Perspective("detail", "Describe this image.", 6), Perspective("short", "In a few words?", 4)]
SQUARE, NEEDLE = Image.new("RGB", (24, 24), "red"), Image.new("RGB", (1, 400), "red")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_captioner(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "tiny-qwen")


def by_image(replies: list[Reply]) -> dict[str, list[tuple[str, str, bool]]]:
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for reply in replies:
        assert bool(reply.text) != bool(reply.error)
        found.setdefault(reply.image_id, []).append((reply.perspective.name, reply.text, bool(reply.error)))
    return {image_id: sorted(answers) for image_id, answers in found.items()}


@pytest.mark.parametrize("place", [0, 1, 4])
def test_an_image_that_fails_costs_no_other_its_answers(qwen: Path, place: int) -> None:
    """Qwen2-VL takes no image that is 200 times as high as wide."""
    backend = LocalBackend(str(qwen), batch_size=3)
    work = [Work(str(number), NEEDLE if number == place else SQUARE, ASKED) for number in range(5)]
    replies = list(backend.answer(work))
    assert len(replies) == 10
    found = by_image(replies)
    assert found.pop(str(place)) == [("detail", "", True), ("short", "", True)]
    assert len(found) == 4 and not any(failed for answers in found.values() for _, _, failed in answers)
    assert len({tuple(answers) for answers in found.values()}) == 1
    errors = {reply.error for reply in replies if reply.error}
    assert len(errors) == 1 and errors.pop().startswith("ValueError: absolute aspect ratio must be smaller than 200")
    # Nor does it cost the model its shared prefix.
    assert backend._generator.shares_prefix


def test_too_large_batches_are_halved(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As if memory held two images."""
    work = [Work(str(number), SQUARE, ASKED) for number in range(7)]
    backend = LocalBackend(str(llava), batch_size=7)
    expected = by_image(list(backend.answer(work)))
    sizes: list[int] = []

    def run_out(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("no memory")

    tower = backend._generator.model.model.vision_tower
    tower.embeddings.register_forward_pre_hook(run_out)
    assert by_image(list(backend.answer(work))) == expected
    assert [size for size in sizes if size > 2] == [7, 3]
    assert backend.batch_size == 1
    assert [line for line in caplog.messages if "No memory for" in line] == [
        "No memory for 7 images at a time: 3 from here on.",
        "No memory for 3 images at a time: 1 from here on.",
    ]


def test_an_image_for_which_there_is_no_memory_at_all_fails(llava: Path) -> None:
    backend = LocalBackend(str(llava), batch_size=2)

    def run_out(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if (args[0] > 0).flatten(1).all(dim=1).any():  # a white one
            raise torch.OutOfMemoryError("no memory")

    backend._generator.model.model.vision_tower.embeddings.register_forward_pre_hook(run_out)
    images = [SQUARE, Image.new("RGB", (24, 24), "white"), SQUARE]
    replies = list(backend.answer(Work(str(place), image, ASKED) for place, image in enumerate(images)))
    assert {reply.image_id: reply.error for reply in replies} == {"0": "", "1": "OutOfMemoryError: no memory", "2": ""}


def test_images_that_are_asked_the_same_go_together_and_few_are_taken_ahead(llava: Path) -> None:
    taken: list[str] = []

    def work() -> Iterator[Work]:
        for number in range(12):
            taken.append(str(number))
            yield Work(str(number), SQUARE, ASKED if number % 2 else ASKED[:1])

    backend = LocalBackend(str(llava), batch_size=3)
    sizes: list[int] = []
    tower = backend._generator.model.model.vision_tower
    tower.embeddings.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    replies = backend.answer(work())
    first = next(replies)
    assert (first.image_id, taken) == ("0", [str(number) for number in range(5)])
    rest = list(replies)
    assert {(each.image_id, each.perspective.name) for each in [first, *rest]} == {
        *((str(number), "detail") for number in range(12)),
        *((str(number), "short") for number in range(1, 12, 2)),
    }
    assert len(rest) == 17 and set(sizes) == {3}


def test_closing_stops(llava: Path) -> None:
    taken: list[int] = []

    def work() -> Iterator[Work]:
        for number in range(100):
            taken.append(number)
            yield Work(str(number), SQUARE, ASKED)

    replies = LocalBackend(str(llava), batch_size=2).answer(work())
    next(replies)
    replies.close()
    assert list(replies) == [] and taken == [0, 1]


def test_who_answered(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder by its own name, wherever it is: rows go into public corpora, and are looked up by it."""
    monkeypatch.chdir(llava)
    for path in (str(llava), "."):
        backend = LocalBackend(path, batch_size=1)
        assert (backend.captioner, backend.revision) == ("tiny-llava", "")


def test_a_perspective_without_a_prompt_is_refused(llava: Path) -> None:
    [web] = load_perspectives(names=["web"])
    with pytest.raises(ValueError, match="`perspective` is 'web', which has no prompt"):
        list(LocalBackend(str(llava), batch_size=1).answer([Work("0", SQUARE, [web])]))


def changed(folder: Path, target: Path, name: str, **values: Any) -> Path:
    shutil.copytree(folder, target)
    settings = json.loads((target / name).read_text()) | values
    (target / name).write_text(json.dumps(settings))
    return target


def test_models_that_are_none_for_it_are_refused(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`batch_size` is 0; expected 1 or more"):
        LocalBackend(str(llava), batch_size=0)
    with pytest.raises(ValueError, match="`model` is '.*none', which cannot be loaded"):
        LocalBackend(str(tmp_path / "none"), batch_size=1)

    pickled = Path(shutil.copytree(llava, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded .*safetensors"):
        LocalBackend(str(pickled), batch_size=1)

    marker = tmp_path / "ran"
    foreign = changed(llava, tmp_path / "foreign", "config.json", model_type="foreign", auto_map={"AutoConfig": "x.C"})
    (foreign / "x.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass")
    with pytest.raises(ValueError, match="Code that comes with it is not run"):
        LocalBackend(str(foreign), batch_size=1)
    assert not marker.exists()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_the_captioner_of_the_readme_is_of_a_kind_that_needs_nothing_else(llava: Path, tmp_path: Path) -> None:
    """Files as llava-hf/llava-interleave-qwen-0.5b-hf has them, with SigLIP's image processor in a file of its own."""
    folder = Path(shutil.copytree(llava, tmp_path / "interleave"))
    settings = json.loads((folder / "processor_config.json").read_text())
    images = settings.pop("image_processor")
    kept = {name: images[name] for name in ("do_normalize", "do_rescale", "do_resize", "resample", "rescale_factor")}
    kept |= {"image_processor_type": "SiglipImageProcessor", "processor_class": "LlavaProcessor"}
    kept |= {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(kept))
    replies = list(LocalBackend(str(folder), batch_size=2).answer([Work("0", SQUARE, ASKED)]))
    assert len(replies) == 2 and not [reply.error for reply in replies if reply.error]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("family", ["SmolVLM", "Qwen2VL", "Qwen2_5_VL", "LlavaOnevision", "InternVL"])
def test_what_a_processor_needs_is_named(family: str, llava: Path, tmp_path: Path) -> None:
    """Their processors read videos with torchvision, which this package does not ask for."""
    folder = Path(shutil.copytree(llava, tmp_path / family))
    settings = json.loads((folder / "processor_config.json").read_text())
    settings |= {"processor_class": f"{family}Processor"}
    settings |= {"video_processor": {"video_processor_type": f"{family}VideoProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"whose processor needs torchvision, .*`--server`\.$") as caught:
        LocalBackend(str(folder), batch_size=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ImportError("TimmWrapper requires the timm library but it was not found."), "timm"),
        (ImportError("Package `num2words` is required to run SmolVLM. `pip install num2words`"), "num2words"),
        (ModuleNotFoundError("No module named 'einops.layers'", name="einops.layers"), "einops"),
        (OSError("no such file"), ""),
    ],
)
def test_packages_are_found_in_what_transformers_says(error: Exception, package: str) -> None:
    assert _missing_package(error) == package


def test_a_model_that_cannot_answer_at_all_is_refused_before_any_image(llava: Path, tmp_path: Path) -> None:
    """Without its template nobody says where in the prompt the image is."""
    mute = Path(shutil.copytree(llava, tmp_path / "mute"))
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="`model` is 'mute', which cannot answer about an image "):
        LocalBackend(str(mute), batch_size=1)


def test_encoder_decoders_are_refused(llava: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = BertConfig(**sizes, vocab_size=300, is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**sizes, image_size=32), decoder)
    shutil.copytree(llava, tmp_path / "vit-bert")
    VisionEncoderDecoderModel(config).save_pretrained(tmp_path / "vit-bert")
    with pytest.raises(ValueError, match="is an encoder-decoder; expected a decoder"):
        LocalBackend(str(tmp_path / "vit-bert"), batch_size=1)
