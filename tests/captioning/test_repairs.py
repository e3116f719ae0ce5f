"""What captioners wrap around a caption, and that nothing of the caption goes with it."""

import json

import pytest

from holistic_clip_hf.captioning.cleaning import repair
from holistic_clip_hf.captioning.perspectives import Perspective, load_perspectives
from holistic_clip_hf.words import split_words

SENTENCE, PHRASE, LIST, WEB = load_perspectives(names=["one_sentence", "short", "nouns", "web"])
DOG = "A dog sits on grass."


@pytest.mark.parametrize(
    "text",
    [
        f"  {DOG}\n",
        f"Sure! {DOG}",
        f"Certainly, here is a detailed description of the image:\n\n{DOG}",
        f"Here's one sentence that describes the image:\n{DOG}",
        f"Caption: {DOG}",
        f"**Short description:** {DOG}",
        f'"{DOG}"',
        f"“{DOG}”",
        f'"{DOG}',  # cut before its end
        f"**{DOG}**",
        f"# {DOG}",
        f"> {DOG}",
        f"```text\n{DOG}\n```",
        "A *dog* sits on **grass**.",
        f"<think>What is it? A dog.</think>\n{DOG}",
        f"USER: What is it?\nASSISTANT: {DOG}",
        f"user\n\n{SENTENCE.prompt}\nassistant\n{DOG}",
        f"<|im_start|>assistant\n{DOG}<|im_end|>",
        f"{DOG}</s>",
        f"{SENTENCE.prompt} {DOG}",
        f"{SENTENCE.prompt.upper()}\n{SENTENCE.prompt}\n{DOG}",
        f"{DOG}\n\nLet me know if you would like more details!",
        f"{DOG}\nUSER: And what else?\nASSISTANT: A ball.",
        "A dog\nsits on\r\ngrass.",
        "A dog\x00sits\u00ad on\u200b grass.\ufffd",
        f'Sure! Here is the caption:\n\n**Caption:** "{DOG}"\n\nI hope this helps!',
        f"```{DOG}```",
        f"<answer>{DOG}</answer>",
        f"<caption>\n{DOG}\n</caption>",
        f"An animal, on a lawn. <answer>{DOG}</answer>",  # reasoning that has no tags
        f"<answer>{DOG}",  # cut before its end
        f"{DOG}</answer>",
        f"$\\boxed{{{DOG}}}$",
        f"<think>It is a dog.</think><answer>{DOG}</answer>",
        f"◁think▷It is a dog.◁/think▷{DOG}",
        f"<|channel|>analysis<|message|>It is a dog.<|end|><|start|>assistant<|channel|>final<|message|>{DOG}",
        f"[THINK]It is a dog.[/THINK]{DOG}",
        json.dumps({"caption": DOG}),
        json.dumps({"caption": [DOG]}),
        json.dumps([{"one_sentence": DOG, "confidence": 0.9}], indent=2),
        json.dumps({"reasoning": "It barks.", "caption": DOG}),
        f"```json\n{json.dumps({'caption': DOG}, indent=2)}\n```",
        f"```json {json.dumps({'caption': DOG})}```",
        f"Here is the caption:\n```json\n{json.dumps({'caption': DOG})}\n```\nLet me know if it helps!",
        f'{{"caption": "{DOG}',  # cut before its end
        f'{{"reasoning": "It barks.", "caption": "{DOG}", "confid',
        str({"caption": DOG, "confidence": 0.9}),
        f"Got it, let me describe the image: {DOG}",
    ],
)
def test_the_caption_is_found(text: str) -> None:
    assert repair(text, SENTENCE) == DOG


@pytest.mark.parametrize(
    "text",
    [
        DOG,
        "Sure-footed goats climb a cliff.",
        'A sign says "Keep off" and another "Danger".',
        "'Tis a dog with a cat's tail.",
        "Here is where the river ends: a lake with a boat.",
        "A user: the word stands on a badge.",
        "A 5 * 3 grid of tiles, and 2 * 2 more.",
        "The list of names on the wall is long.",
        "Okay signs hang on a fence.",
        "1.5 metres of snow lie on a roof.",
        '{"a": 1, "b": 2} is printed on a shirt.',
        "[A dog] sits on a <b> key.",
        "Let's eat: the sign of a café.",
    ],
)
def test_nothing_of_a_caption_is_taken_for_a_wrapping(text: str) -> None:
    assert repair(text, SENTENCE) == text


def test_phrases_lose_their_full_stop_and_lists_their_lines() -> None:
    assert repair("A dog on grass.", PHRASE) == "A dog on grass"
    assert repair("Made in the U.S.", PHRASE) == "Made in the U.S."
    assert repair("to be continued...", PHRASE) == "to be continued..."
    structured = ['["dog", "red ball", "grass"]', "['dog', 'red ball', 'grass']"]
    structured += ['{"nouns": ["dog", "red ball", "grass']  # cut before its end
    lines = ["- dog\n- red ball\n- grass", "1. dog\n2. red ball\n3. grass.", "dog,\nred ball,\ngrass"]
    for text in (*lines, *structured):
        assert repair(text, LIST) == "dog, red ball, grass"
    assert repair("The nouns in this image are: dog, red ball, grass.", LIST) == "dog, red ball, grass"


def test_a_text_that_came_with_its_image_is_only_tidied() -> None:
    assert repair(' Caption:\n "Sure! **A dog**" ', WEB) == 'Caption: "Sure! **A dog**"'


def test_a_prompt_that_is_all_there_is_stays_for_judgement() -> None:
    assert repair(f"{SENTENCE.prompt} {SENTENCE.prompt}", SENTENCE) == SENTENCE.prompt
    assert repair("", SENTENCE) == repair("<think>", SENTENCE) == ""
    assert repair(DOG, Perspective("any", "?!")) == DOG


def test_half_characters_and_pairs_of_them() -> None:
    assert repair("A \ud83d\ude00 dog \ud83d", PHRASE) == "A 😀 dog"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('A "red" sail-boat, 停泊.', ["A", "red", "sail-boat", "停", "泊"]),
        ("l'herbe — ¿qué? …", ["l'herbe", "qué"]),
        ("สุนัข", list("สุนัข")),
        ("강아지가 앉아 있다.", ["강아지가", "앉아", "있다"]),
        (" ... ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words
