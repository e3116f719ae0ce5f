"""Captions by a model on this machine: what is shared changes nothing, and no image costs the others their answers."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import tiny_captioner
from holistic_clip_hf.captioning.captioner import Reply, Work
from holistic_clip_hf.captioning.cleaning import clean_answer
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.perspectives import Perspective

MAKERS = {
    "llava": tiny_captioner.make_tiny_captioner,
    "qwen2_vl": tiny_captioner.make_tiny_qwen2_vl,
    "gemma3": tiny_captioner.make_tiny_gemma3,
    "paligemma": tiny_captioner.make_tiny_paligemma,
}
SHARING = ("llava", "qwen2_vl", "gemma3")
ASKED = [
    Perspective("detail", "Describe this image in detail.", max_new_tokens=14),
    Perspective("short", "Describe it.", max_new_tokens=6),
    Perspective("nouns", "Name all things.", max_new_tokens=10),
]
Answers = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`captioner("llava")`: its folder."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            torch.manual_seed(0)
            folders[kind] = MAKERS[kind](tmp_path_factory.mktemp(kind) / kind)
        return folders[kind]

    return make


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))


def works(count: int = 4, perspectives: list[Perspective] = ASKED, same_size: bool = False) -> list[Work]:
    """Images of different sizes; of Qwen2-VL's tokens they have different numbers."""
    size = [0] * count if same_size else range(count)
    return [Work(f"image-{i}", noise(16 + 8 * k, 24 + 4 * k, i), perspectives) for i, k in enumerate(size)]


def texts(replies: list[Reply]) -> Answers:
    assert not [reply.error for reply in replies if reply.error]
    found = {(reply.image_id, reply.perspective.name): reply.text for reply in replies}
    assert len(found) == len(replies)
    return found


def one_by_one(folder: Path, work: list[Work]) -> Answers:
    """The model's own `generate`, for one image and one prompt at a time."""
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    found = tokens_one_by_one(folder, work)
    return {row: tokenizer.decode(tokens, skip_special_tokens=True).strip() for row, tokens in found.items()}


def tokens_one_by_one(folder: Path, work: list[Work]) -> dict[tuple[str, str], list[int]]:
    """Tokens of the model's own `generate`, with those that end answers."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    found = {}
    for image_id, image, perspectives in work:
        for each in perspectives:
            content = [{"type": "image", "image": image}, {"type": "text", "text": each.prompt}]
            if processor.chat_template:
                inputs = processor.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    processor_kwargs={"return_tensors": "pt"},
                )
            else:
                inputs = processor(images=image, text=each.prompt, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=each.max_new_tokens, do_sample=False)[0]
            found[image_id, each.name] = tokens[inputs["input_ids"].shape[1] :].tolist()
    return found


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of ours; transformers has its own."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("holistic_clip_hf")]


def vision_passes(backend: LocalBackend) -> Callable[[], int]:
    """How often the vision tower has run since the last call."""
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    model = backend._generator.model.model
    (model.visual if hasattr(model, "visual") else model.vision_tower).register_forward_hook(count)

    def since() -> int:
        found, counted[0] = counted[0], 0
        return found

    return since


@pytest.mark.parametrize("kind", SHARING)
def test_captions_are_those_of_one_image_and_one_prompt_at_a_time(
    captioner: Callable[[str], Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    work = works()
    backend = LocalBackend(str(captioner(kind)), batch_size=2)
    passes = vision_passes(backend)
    replies = list(backend.answer(work))
    expected = one_by_one(captioner(kind), work)
    assert len(set(expected.values())) > len(ASKED)  # the image matters
    assert texts(replies) == expected
    assert not complaints(caplog)
    passes()
    assert texts(list(backend.answer(work[:2]))).items() <= expected.items()
    assert passes() == 1  # for two images and three prompts


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1]])
def test_one_prompt_or_several_in_any_order(captioner: Callable[[str], Path], order: list[int]) -> None:
    work = works(3, [ASKED[place] for place in order])
    backend = LocalBackend(str(captioner("qwen2_vl")), batch_size=3)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("qwen2_vl"), work)


def test_without_sharing_every_prompt_reads_the_image(captioner: Callable[[str], Path]) -> None:
    work = works(2)
    backend = LocalBackend(str(captioner("llava")), batch_size=2, share_prefix=False)
    passes = vision_passes(backend)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("llava"), work)
    passes()  # of a first batch, which is asked both ways
    list(backend.answer(work))
    assert passes() == len(ASKED)


def test_a_model_whose_image_sees_the_prompt_reads_it_anew(
    captioner: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """PaliGemma, asked without a chat template."""
    work = works(3)
    backend = LocalBackend(str(captioner("paligemma")), batch_size=2)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("paligemma"), work)
    # Nor does it go on from positions that it is given: it counts from one, and adds that to them.
    reading, decoding = complaints(caplog)
    assert reading.startswith("PaliGemmaForConditionalGeneration reads an image anew for every prompt: going on from")
    assert decoding.startswith("PaliGemmaForConditionalGeneration decodes the answers to every prompt apart: going on")
    assert "standard deviations" in reading and "standard deviations" in decoding


def test_a_template_with_the_image_behind_the_prompt_cannot_share(
    captioner: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(captioner("llava"), tmp_path / "behind"))
    template = (
        "{% for part in messages[0]['content'] | reverse %}{{ part.text if part.type == 'text' else '<image>' }}"
    )
    (folder / "chat_template.jinja").write_text(template + "{% endfor %}:")
    work = works(2)
    assert texts(list(LocalBackend(str(folder), batch_size=2).answer(work))) == one_by_one(folder, work)
    assert "its prompts differ before the end of the image" in caplog.text


def test_a_model_that_is_wrong_with_padding_only_is_found_out(
    captioner: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """As if it forgot, when it goes on from a cache, what in there is padding."""
    backend = LocalBackend(str(captioner("qwen2_vl")), batch_size=2)

    def forget(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if isinstance(mask := kwargs.get("attention_mask"), torch.Tensor) and cache and cache.get_seq_length() > 0:
            suffix = kwargs["inputs_embeds"].shape[1]
            kwargs["attention_mask"] = torch.ones_like(mask) if suffix > 1 else mask
        return args, kwargs

    list(backend.answer(works(2, same_size=True)))
    backend._generator.model.model.language_model.register_forward_pre_hook(forget, with_kwargs=True)
    list(backend.answer(works(2, same_size=True)))
    assert not complaints(caplog)
    work = works(2)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("qwen2_vl"), work)
    assert "reads an image anew" in caplog.text


def test_an_answer_ends_where_the_checkpoint_says(captioner: Callable[[str], Path], tmp_path: Path) -> None:
    work = works(2, ASKED[:2])
    whole = one_by_one(captioner("llava"), work)["image-0", "detail"]
    processor = AutoProcessor.from_pretrained(captioner("llava"))
    place = next(place for place in range(3, len(whole)) if whole[place] not in whole[:place])
    folder = Path(shutil.copytree(captioner("llava"), tmp_path / "ending"))
    settings = json.loads((folder / "generation_config.json").read_text())
    # A checkpoint's own sampling is not ours.
    settings |= {"eos_token_id": [258, processor.tokenizer.convert_tokens_to_ids(whole[place])], "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    replies = list(LocalBackend(str(folder), batch_size=2).answer(work))
    first = next(each for each in replies if (each.image_id, each.perspective.name) == ("image-0", "detail"))
    assert (first.text, first.finished) == (whole[:place].strip(), True)
    assert not all(reply.finished for reply in replies)


def with_settings(folder: Path, target: Path, **settings: Any) -> Path:
    """A copy of a captioner with other generation settings."""
    shutil.copytree(folder, target)
    path = target / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return target


def often(folder: Path, work: list[Work], count: int) -> list[int]:
    """Tokens that are in many answers: taken for ends of answers, they make these end at different lengths."""
    answers = tokens_one_by_one(folder, work).values()
    return [token for token, _ in Counter(token for answer in answers for token in set(answer)).most_common(count)]


def decoded(backend: LocalBackend) -> list[int]:
    """Rows of each step from here on: of the passes of one token each."""
    rows: list[int] = []

    def note(_: Any, __: Any, options: dict[str, Any]) -> None:
        if options["input_ids"].shape[1] == 1:
            rows.append(len(options["input_ids"]))

    backend._generator.model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@pytest.mark.parametrize("kind", SHARING)
def test_no_step_is_spent_on_answers_that_have_ended(
    captioner: Callable[[str], Path], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first token of an answer comes with its prompt, and each other takes one row of one step."""
    work = works(5)
    ends = often(captioner(kind), work, 1)
    folder = with_settings(captioner(kind), tmp_path / "ending", eos_token_id=ends)
    expected = tokens_one_by_one(folder, work)
    lengths = [len(tokens) for tokens in expected.values()]
    assert len(set(lengths)) > 3
    backend = LocalBackend(str(folder), batch_size=5)
    list(backend.answer(work))  # the first batch is asked both ways
    rows = decoded(backend)
    replies = list(backend.answer(work))
    assert sum(rows) == sum(lengths) - len(lengths)
    finished = {(each.image_id, each.perspective.name): each.finished for each in replies}
    assert finished == {row: tokens[-1] in ends for row, tokens in expected.items()}
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    assert texts(replies) == {
        row: tokenizer.decode([token for token in tokens if token not in ends], skip_special_tokens=True).strip()
        for row, tokens in expected.items()
    }
    assert not complaints(caplog)


@pytest.mark.parametrize(("images", "prompts"), [(1, 1), (1, 3), (4, 1), (4, 3)])
def test_answers_that_all_end_at_once(
    captioner: Callable[[str], Path], images: int, prompts: int, tmp_path: Path
) -> None:
    work = works(images, [replace(asked, max_new_tokens=5) for asked in ASKED[:prompts]])
    folder = with_settings(captioner("qwen2_vl"), tmp_path / "endless", eos_token_id=None)
    backend = LocalBackend(str(folder), batch_size=4)
    assert texts(list(backend.answer(work))) == one_by_one(folder, work)
    rows = decoded(backend)
    list(backend.answer(work))
    assert sum(rows) == images * prompts * 4


def test_rows_keep_their_own_random_numbers(captioner: Callable[[str], Path], tmp_path: Path) -> None:
    """Cold and hot ones together, while others end, against those of one image and one prompt at a time."""
    heats = [(0.0, 1.0), (1.5, 1.0), (1.5, 0.8)]
    mixed = [replace(each, temperature=heat, top_p=top_p) for each, (heat, top_p) in zip(ASKED, heats, strict=True)]
    work = works(4, mixed)
    ends = often(captioner("qwen2_vl"), works(4), 2)
    backend = LocalBackend(
        str(with_settings(captioner("qwen2_vl"), tmp_path / "hot", eos_token_id=ends)), batch_size=4
    )
    alone = [each._replace(perspectives=[asked]) for asked in mixed for each in work]
    expected = texts([reply for each in alone for reply in backend.answer([each])])
    lengths = {len(text) for text in expected.values()}
    assert len(lengths) > 3
    assert texts(list(backend.answer(work))) == expected


def test_rules_about_what_was_said_before_hold_from_piece_to_piece(
    captioner: Callable[[str], Path], tmp_path: Path
) -> None:
    """And the first token has a rule of its own."""
    work = works(4)
    rules = {"eos_token_id": None, "begin_suppress_tokens": often(captioner("qwen2_vl"), work, 30)}
    rules |= {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    folder = with_settings(captioner("qwen2_vl"), tmp_path / "rules", **rules)
    backend = LocalBackend(str(folder), batch_size=4)
    assert texts(list(backend.answer(work))) == one_by_one(folder, work)
    later = {token for tokens in tokens_one_by_one(folder, work).values() for token in tokens[1:]}
    assert later & set(rules["begin_suppress_tokens"])


def test_a_model_that_cannot_go_on_together_answers_apart(
    captioner: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """As if it counted its positions itself, padding included."""
    backend = LocalBackend(str(captioner("llava")), batch_size=3)

    def count(_: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "position_ids": None}

    backend._generator.model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    work = works(5)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("llava"), work)
    [warning] = complaints(caplog)
    assert warning.startswith("LlavaForConditionalGeneration decodes the answers to every prompt apart: going on toge")


def test_rows_wait_while_caches_weigh_more_than_the_model(captioner: Callable[[str], Path], tmp_path: Path) -> None:
    """A row holds keys and values of 2 layers with 2 heads of 8 numbers for each token, of 4 bytes each."""
    asked = [replace(each, name=f"{each.name}-{number}") for number in range(4) for each in ASKED]
    work = works(4, asked, same_size=True)
    backend = LocalBackend(str(captioner("llava")), batch_size=4)
    list(backend.answer(work))
    rows = decoded(backend)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("llava"), work)
    weight = sum(each.numel() for each in backend._generator.model.parameters())
    prompt = backend._generator._encode([work[0].image], ASKED[1].prompt or "")["input_ids"].shape[1]
    assert 4 < max(rows) <= weight / (2 * 2 * 2 * 8 * prompt) < 4 * len(asked)


def test_an_image_without_memory_for_all_its_answers_is_answered_one_by_one(captioner: Callable[[str], Path]) -> None:
    work = works(3)
    backend = LocalBackend(str(captioner("llava")), batch_size=2)
    backend._generator.model.register_forward_pre_hook(run_out, with_kwargs=True)
    assert texts(list(backend.answer(work))) == one_by_one(captioner("llava"), work)
    assert backend.batch_size == 1 and backend._generator.decodes_together


def run_out(_: Any, __: Any, options: dict[str, Any]) -> None:
    """As if memory held one row of answers."""
    if len(options["input_ids"]) > 1:
        raise torch.OutOfMemoryError("no memory")


THINKING = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"


def test_a_prompt_that_ends_in_thinking_begins_the_answer(captioner: Callable[[str], Path], tmp_path: Path) -> None:
    """The model says nothing by which its thinking would be known; switched off, it answers."""
    folder = Path(shutil.copytree(captioner("llava"), tmp_path / "thinking"))
    with open(folder / "chat_template.jinja", "a") as file:
        file.write(THINKING)
    replies = list(LocalBackend(str(folder), batch_size=2).answer(works(2)))
    assert all(reply.text.startswith("<think>") for reply in replies)
    assert {clean_answer(each.text, each.finished, each.perspective).status for each in replies} == {"unfinished"}
    quiet = LocalBackend(str(folder), batch_size=2, chat_template_kwargs={"enable_thinking": False})
    assert texts(list(quiet.answer(works(2)))) == one_by_one(captioner("llava"), works(2))


def test_options_of_a_template_need_one(captioner: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="'paligemma' has no chat template; expected none"):
        LocalBackend(str(captioner("paligemma")), batch_size=1, chat_template_kwargs={"enable_thinking": False})


def test_marks_of_thinking_are_kept_where_they_are_special_tokens(
    captioner: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(captioner("llava"), tmp_path / "marked"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<video>", "</think>"))
    generator = LocalBackend(str(folder), batch_size=1)._generator
    tokenizer = generator.processor.tokenizer
    tokens = tokenizer.encode("It.", add_special_tokens=False), tokenizer.encode("Dog.", add_special_tokens=False)
    mark, end = tokenizer.convert_tokens_to_ids(["</think>", "</s>"])
    assert tokenizer.decode([mark], skip_special_tokens=True) == ""
    assert generator._read([*tokens[0], mark, *tokens[1], end, end]) == ("It.</think>Dog.", True)


def test_bfloat16_shares_too(captioner: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    backend = LocalBackend(str(captioner("gemma3")), batch_size=2, dtype=torch.bfloat16)
    assert len(texts(list(backend.answer(works(2))))) == 6
    assert not complaints(caplog)


def test_sampling_repeats_and_leaves_the_callers_random_numbers_alone(captioner: Callable[[str], Path]) -> None:
    hot = [
        Perspective("a", "Describe it.", 12, temperature=1.5),
        Perspective("b", "Describe it.", 12, temperature=1.5),
    ]
    work = works(2, hot)
    torch.manual_seed(1)
    first, *rest = (texts(list(LocalBackend(str(captioner("llava")), batch_size=2).answer(work))) for _ in range(2))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert rest == [first]
    assert first["image-0", "a"] != first["image-0", "b"]
    cold = [Perspective(each.name, each.prompt, each.max_new_tokens, temperature=1e-4) for each in ASKED]
    backend = LocalBackend(str(captioner("llava")), batch_size=2)
    assert texts(list(backend.answer(works(2, cold)))) == one_by_one(captioner("llava"), works(2))


@pytest.mark.parametrize("kind", SHARING)
def test_a_sample_depends_on_its_row_alone(captioner: Callable[[str], Path], kind: str) -> None:
    """Not on the batch in which it is drawn, which is another one after a kill."""
    hot = [Perspective(each.name, each.prompt, each.max_new_tokens, temperature=1.5) for each in ASKED]
    work = works(5, hot)
    alone = texts(list(LocalBackend(str(captioner(kind)), batch_size=1).answer(work)))
    assert len(set(alone.values())) == len(alone)
    backend = LocalBackend(str(captioner(kind)), batch_size=3)
    assert texts(list(backend.answer(work))) == alone
    rest = [each._replace(perspectives=hot[number % 2 :]) for number, each in enumerate(work[1:])]
    assert texts(list(backend.answer(reversed(rest)))).items() <= alone.items()


def test_samples_come_from_the_nucleus_in_proportion(captioner: Callable[[str], Path]) -> None:
    """Of 200 first tokens, against probabilities worked out one after the other from the model's logits."""
    temperature, top_p, count = 2.0, 0.6, 200
    asked = [Perspective(name, "Describe it.", 1, temperature, top_p) for name in ("a", "b")]
    image = noise(16, 16, 0)
    backend = LocalBackend(str(captioner("llava")), batch_size=count)
    replies = list(backend.answer([Work(str(number), image, asked) for number in range(count)]))
    found = [reply.text for reply in replies if reply.perspective.name == "a"]
    model, processor = backend._generator.model, backend._generator.processor
    inputs = backend._generator._encode([image], "Describe it.")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    probabilities = (logits / temperature).softmax(dim=-1).tolist()
    nucleus: dict[str, float] = {}
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if sum(nucleus.values()) >= top_p:
            break
        nucleus[processor.tokenizer.decode([token], skip_special_tokens=True).strip()] = probabilities[token]
    assert 2 < len(nucleus) < 200 and set(found) <= nucleus.keys()
    for text, probability in nucleus.items():
        share = probability / sum(nucleus.values())
        assert abs(found.count(text) / count - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert found != [reply.text for reply in replies if reply.perspective.name == "b"]
