"""The form that a model's captions had in training: written once, saved with the processor, and nothing without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.initialization import saved_caption_form
from holistic_clip_hf.options_holistic_clip import write_caption

FORM, NAMES = "{perspective}: {text}", ["short", "palette"]
STORED = Path(__file__).parents[1] / "data" / "checkpoints" / "0.1.0" / "mlp"


@pytest.fixture
def formed(processor: HolisticCLIPProcessor) -> HolisticCLIPProcessor:
    parts = processor.image_processor, processor.tokenizer
    return HolisticCLIPProcessor(*parts, caption_form=FORM, caption_perspectives=NAMES)


def test_a_caption_of_a_known_perspective_is_written_and_no_other(formed: HolisticCLIPProcessor) -> None:
    assert formed.write_caption("yellow", "palette") == "palette: yellow"
    for unknown in (None, "all", "fused", "file name"):
        assert formed.write_caption("yellow", unknown) == "yellow"


def test_braces_of_a_caption_stay_as_they_are() -> None:
    assert write_caption("{text} ({perspective})", "style", "a {perspective}") == "a {perspective} (style)"


def test_nested_captions_are_those_that_somebody_wrote_out(formed: HolisticCLIPProcessor) -> None:
    """Cleaned with the form, missing ones missing, and alike only if their perspective is."""
    found = formed.nested_captions([["a &amp;  b", "red"], ["red", None]], NAMES)
    expected = formed.nested_captions([["short: a & b", "palette: red"], ["short: red", None]])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["caption_ids"][0, 1] != found["caption_ids"][1, 0]
    plain = formed.nested_captions([["a & b", "red"], ["red", None]])
    assert plain["caption_ids"][0, 1] == plain["caption_ids"][1, 0], "without names they are read as they are"


@pytest.mark.parametrize("names", [["short"], "short"])
def test_slots_without_a_name_are_refused(formed: HolisticCLIPProcessor, names: Any) -> None:
    with pytest.raises(ValueError, match="an image has 2 captions; expected a name for each. Give the names of all"):
        formed.nested_captions([["a dog", "red"]], names)


def test_a_blank_caption_is_refused_though_its_form_is_not_blank(formed: HolisticCLIPProcessor) -> None:
    with pytest.raises(ValueError, match=r"empty at \(image, slot\) \[\(0, 1\)\]"):
        formed.nested_captions([["a dog", " &nbsp; "]], NAMES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"caption_form": "{perspective}", "caption_perspectives": NAMES}, r"expected a form with \{text\}, such as"),
        ({"caption_form": 7, "caption_perspectives": NAMES}, r"`caption_form` is 7; expected a form with \{text\}"),
        ({"caption_form": FORM}, "expected a form and the names of the perspectives whose captions it writes"),
        ({"caption_perspectives": NAMES}, "`caption_form` is None and .* or neither. Add what is missing"),
        ({"caption_form": FORM, "caption_perspectives": "short"}, "`caption_perspectives` is 'short'; expected"),
    ],
)
def test_a_bad_form_is_refused(processor: HolisticCLIPProcessor, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HolisticCLIPProcessor(processor.image_processor, processor.tokenizer, **given)


def test_what_is_cut_with_its_form_is_counted(formed: HolisticCLIPProcessor) -> None:
    """As many tokens as fit without the form, which then has no room."""
    tokenizer = formed.tokenizer
    room = tokenizer.model_max_length - 2
    text = "red " * room
    assert len(tokenizer(text)["input_ids"]) == tokenizer.model_max_length
    formed.nested_captions([[text]])
    assert formed.num_truncated == 0
    formed.nested_captions([[text]], ["short"])
    assert formed.num_truncated == 1


def test_a_saved_processor_keeps_it(formed: HolisticCLIPProcessor, tmp_path: Path) -> None:
    formed.save_pretrained(tmp_path)
    for loaded in (HolisticCLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert (loaded.caption_form, loaded.caption_perspectives) == (FORM, NAMES)
        assert loaded.write_caption("yellow", "palette") == "palette: yellow"
    assert saved_caption_form(tmp_path) == (FORM, NAMES)
    path = tmp_path / "processor_config.json"
    path.write_text(path.read_text().replace("{text}", "{test}"))
    with pytest.raises(ValueError, match=r"expected a form with \{text\}"):
        HolisticCLIPProcessor.from_pretrained(tmp_path)


def test_without_a_form_nothing_of_it_is_saved(processor: HolisticCLIPProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert "caption" not in (tmp_path / "processor_config.json").read_text()
    assert saved_caption_form(tmp_path) == (None, [])


def test_an_earlier_checkpoint_is_saved_as_it_was_and_answers_the_same(tmp_path: Path) -> None:
    old = HolisticCLIPProcessor.from_pretrained(STORED)
    assert (old.caption_form, old.caption_perspectives) == (None, [])
    old.save_pretrained(tmp_path)
    saved, stored = (json.loads((each / "processor_config.json").read_text()) for each in (tmp_path, STORED))
    assert saved.keys() - {"auto_map"} == stored.keys() - {"auto_map"}
    captions = [["a red circle", "all red", None], ["a blue square", None, "one square"]]
    named, plain = old.nested_captions(captions, ["short", "colour", "shape"]), old.nested_captions(captions)
    assert all(torch.equal(named[name], plain[name]) for name in plain)


def test_a_form_is_part_of_a_fingerprint_and_none_is_not(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, formed: HolisticCLIPProcessor
) -> None:
    """A calibration holds for texts in the form that it was fitted with."""
    model = make_model(perspectives=[*NAMES, "style"])
    parts = processor.image_processor, processor.tokenizer
    other = HolisticCLIPProcessor(*parts, caption_form="{text}, {perspective}", caption_perspectives=NAMES)
    found = [fingerprint(model, each, with_fusion=False) for each in (processor, formed, other)]
    assert len(set(found)) == 3


def test_a_checkpoint_of_other_people_has_none(processor: HolisticCLIPProcessor, tmp_path: Path) -> None:
    processor.image_processor.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    assert saved_caption_form(tmp_path) == (None, [])
