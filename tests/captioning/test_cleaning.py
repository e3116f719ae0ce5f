"""Answers to captions: what is judged, what is cut away, and that any text is taken."""

import time

import pytest

from holistic_clip_hf.captioning.cleaning import Cleaned, clean_answer
from holistic_clip_hf.captioning.perspectives import Answer, Perspective, load_perspectives
from holistic_clip_hf.captioning.store import STATUSES

SENTENCE, DETAIL, PHRASE, LIST, WEB = load_perspectives(names=["one_sentence", "detail", "short", "nouns", "web"])
DOG = "A dog sits on green grass in the sun."


def clean(text: str, perspective: Perspective = SENTENCE, finished: bool = True) -> Cleaned:
    """The answer, judged; whatever is said, it is one line and of a status that rows have."""
    cleaned = clean_answer(text, finished, perspective)
    assert cleaned.status in STATUSES and len(cleaned.caption.splitlines()) <= 1
    assert (cleaned.error == "") == (cleaned.status == "ok")
    return cleaned


def in_language(language: str | None) -> Perspective:
    return Perspective("any", "Describe it.", answer=Answer(language=language))


@pytest.mark.parametrize(
    ("text", "perspective"),
    [
        (DOG, SENTENCE),
        ("A dog sits on green grass in the sun", SENTENCE),  # a captioner that stopped by itself
        ('A sign reads "Sorry, we are closed" on the door of a shop.', SENTENCE),
        ("Sorry-looking dogs sit in the rain under a bench.", SENTENCE),
        ("I see a dog that sits on a lawn.", SENTENCE),
        ("There is no snow on the mountains behind the lake.", SENTENCE),
        ("The photo was taken at 3 p.m. in the U.S. by Dr. A. Smith.", SENTENCE),
        ("A screenshot shows the words: describe this image, I cannot.", SENTENCE),
        ("A man in a red, red shirt says no, no, no to a very, very large cake.", SENTENCE),
        ("red dog", PHRASE),
        ("a jar of jalapeños and crème brûlée", PHRASE),
        ("dog, lawn, sun, red ball", LIST),
        ("A screenshot of a chat in which the user asks for the way. The user wants to go home.", SENTENCE),
        ('A sign says that "I must answer the phone".', SENTENCE),
        ("Kaufe jetzt! Bild 123", WEB),
        ("I'm sorry", WEB),  # comes with an image: nobody refuses
    ],
)
def test_captions_stay_as_they_are(text: str, perspective: Perspective) -> None:
    assert clean(text, perspective) == (text, "ok", "")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t help with that.",
        "Sorry, I cannot describe this picture.",
        "I cannot see the image. Please upload it.",
        "Unfortunately, I am unable to view images.",
        "As an AI language model, I do not have eyes.",
        "There is no image attached to your message.",
        "It seems that no image was provided.",
        "Could you please provide the image?",
        "I apologize, but I cannot identify people.",
        "The picture is blurred. I cannot describe what is in this image.",
    ],
)
def test_refusals(text: str) -> None:
    cleaned = clean(text)
    assert (cleaned.status, cleaned.caption) == ("refusal", text)
    assert "refuses" in cleaned.error


@pytest.mark.parametrize(
    "text",
    [SENTENCE.prompt, f"{SENTENCE.prompt} {SENTENCE.prompt}", "describe this image in one", "- THIS IMAGE IN ONE"],
)
def test_echoes_of_the_prompt(text: str) -> None:
    assert clean(text).status == "echo"


def test_a_few_words_of_the_prompt_may_answer_it() -> None:
    assert clean("few words", PHRASE).status == "ok"


@pytest.mark.parametrize(
    ("text", "finished", "caption", "reason"),
    [
        ("A dog sits on grass. Behind it a red ba", False, "A dog sits on grass.", "'Behind it a red ba'"),
        ("A dog sits on grass! It is with Dr.", False, "A dog sits on grass!", "'It is with Dr.'"),
        ("A dog sits on grass. It costs 3.", False, "A dog sits on grass.", "'It costs 3.'"),
        ("A dog sits on grass. It has a ball and", True, "A dog sits on grass.", "'It has a ball and'"),
        ('It says "Keep off!" A dog sits', False, 'It says "Keep off!"', "'A dog sits'"),
        ("A dog sits on it. A cat is near. A dog sits on it.", True, "A dog sits on it. A cat is near.", "1 repeated"),
    ],
)
def test_an_unfinished_end_is_cut_at_the_last_full_stop(text: str, finished: bool, caption: str, reason: str) -> None:
    cleaned = clean(text, finished=finished)
    assert (cleaned.caption, cleaned.status) == (caption, "cut")
    assert cleaned.error.startswith("cut ") and reason in cleaned.error


def test_other_forms_are_cut_elsewhere() -> None:
    assert clean("dog, lawn, red ball, tre", LIST, finished=False)[:2] == ("dog, lawn, red ball", "cut")
    assert clean("dog, lawn, Dog, dog", LIST)[:2] == ("dog, lawn", "cut")
    assert clean("一只狗坐在草地上。旁边有一", in_language("zh"), finished=False)[:2] == ("一只狗坐在草地上。", "cut")


@pytest.mark.parametrize(
    ("text", "perspective"),
    [("A dog sits on green grass and", SENTENCE), ("a dog on a lawn in", PHRASE), ("jalape", LIST), ("Dr.", SENTENCE)],
)
def test_of_nothing_whole_nothing_is_kept(text: str, perspective: Perspective) -> None:
    cleaned = clean(text, perspective, finished=False)
    assert (cleaned.caption, cleaned.status) == (text.rstrip("." * (perspective != SENTENCE)), "unfinished")


@pytest.mark.parametrize(
    ("text", "perspective"),
    [
        ("A dog sits. " * 5, SENTENCE),
        ("a dog " * 8, SENTENCE),
        ("word " * 400, DETAIL),
        ("on the left a red ball and " * 4, DETAIL),
        ("dog, dog, dog, dog, dog, cat", LIST),
        ("狗" * 40, in_language("zh")),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_repetitions(text: str, perspective: Perspective, finished: bool) -> None:
    assert clean(text, perspective, finished).status == "repetition"


@pytest.mark.parametrize(
    ("text", "language", "named"),
    [
        ("Ein Hund sitzt auf einer grünen Wiese in der Sonne.", "en", "'de', not 'en'"),
        ("Un chien est assis dans l'herbe verte sous le soleil.", "en", "'fr', not 'en'"),
        ("一只狗坐在草地上。", "en", "another script than 'en'"),
        ("Собака сидит.", "en", "another script than 'en'"),
        (DOG, "de", "'en', not 'de'"),
        (DOG, "ja", "another script than 'ja'"),
        ("A dog sits here.", "ru", "another script than 'ru'"),
    ],
)
def test_wrong_languages(text: str, language: str, named: str) -> None:
    cleaned = clean(text, in_language(language))
    assert (cleaned.caption, cleaned.status) == (text, "language")
    assert named in cleaned.error


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ein Hund sitzt auf einer grünen Wiese in der Sonne.", "de"),
        ("Ein Hund sitzt auf einer grünen Wiese in der Sonne.", None),
        ("Chien assis.", "en"),  # too short to tell
        ("一只狗坐在草地上。", "zh"),
        ("犬が草の上に座っている。", "ja"),
        ("Собака сидит на зелёной траве под солнцем.", "ru"),
        ("A dog named Жук sits on green grass in the sun.", "en"),
        ("Mbwa anakaa kwenye nyasi kijani chini ya jua.", "xx"),  # nobody knows the language
    ],
)
def test_right_languages(text: str, language: str | None) -> None:
    assert clean(text, in_language(language)).status == "ok"


THOUGHTS = [
    "Got it, let me look at the image. The user wants one sentence. I should",
    "Okay, so let me describe what I see. There is a dog. It",
    "Hmm, I need to look carefully. There is a dog on green grass. It",
    "The user asks for one sentence. There is a dog on green grass. I",
]


@pytest.mark.parametrize("text", [*THOUGHTS, "<think>It is a dog. It", "◁think▷It is a dog. It", ""])
def test_thinking_that_does_not_end_is_not_a_caption(text: str) -> None:
    """Templates may open the block in the prompt, so that nothing in the answer says that it is thinking."""
    assert clean(text, finished=False).status == "unfinished"
    assert clean(text, DETAIL, finished=False).status == "unfinished"


def test_a_captioner_that_stops_within_its_thinking_has_not_finished() -> None:
    assert clean("<think>It is a dog that sits on grass.").status == "unfinished"
    assert clean(f"{THOUGHTS[0]} say so.").status == "unfinished"
    assert clean("Okay, so the user wants a sentence. There is a dog on grass.").status == "unfinished"


@pytest.mark.parametrize(
    "text",
    [
        f"{THOUGHTS[0]} say so.</think>{DOG}",  # the prompt had its beginning
        f"<think>{THOUGHTS[0]} say so.</think>{DOG}",
        f"Okay, let me describe the image: {DOG}",
        f"{DOG}<think>Was that right? Let me",
        f"{THOUGHTS[0]} say so. <answer>{DOG}</answer>",
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_caption_beside_thinking_counts(text: str, finished: bool) -> None:
    assert clean(text, finished=finished) == (DOG, "ok", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "...",
        '""',
        "\ufeff\u200b",
        "**",
        "<think>It is a dog.</think>",
        "\ufffd\x00",
        "&nbsp;",
        "&amp;nbsp;",
    ],
)
def test_empties(text: str) -> None:
    assert clean(text)[:2] == ("", "empty")


def test_lengths() -> None:
    assert clean("A dog.") == ("A dog.", "too_short", "a length of 2 in words, not 3 to 60")
    words = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    assert clean(words, PHRASE) == (words, "too_long", "a length of 17 in words, not 1 to 16")
    assert clean("A dog. It", SENTENCE, finished=False).error == (
        "cut an unfinished end: 'It'; a length of 2 in words, not 3 to 60"
    )


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "a b " * 25_000, "Sure! " * 17_000, "\n- x" * 25_000, "(" * 100_000, "A dog. " * 14_000]
    + ["*a " * 33_000, "I cannot " * 11_000, " " * 100_000, "USER:" * 20_000, "a.b!c?" * 16_000, "[" * 100_000]
    + ["It seems " * 11_000, "\ud800" * 100_000, "<|a" * 33_000, "here is a " * 10_000]
    + ["<answer>" * 12_000, "<think>" * 14_000, '{"a": ' * 16_000, '{"caption": "' * 8_000, "['a', " * 16_000]
    + ["\n" * 100_000, "a" + "\n" * 100_000 + "a", ". so, " * 16_000, "so " * 33_000, "the user\n" * 11_000]
    + ["```" * 33_000, "``` " * 25_000, "let me look " * 8_000, "the user " * 11_000, "['" + "' " * 50_000],
)
def test_100_kb_of_anything_are_taken_in_time(text: str) -> None:
    start = time.process_time()
    clean(text, DETAIL, finished=False)
    assert time.process_time() - start < 5  # a quarter of a second, mostly; minutes, where a pattern goes back
