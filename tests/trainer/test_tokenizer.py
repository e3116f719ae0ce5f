"""The small tokenizer: no text is unknown to it, and its sizes are what was asked for."""

import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from holistic_clip_hf.trainer.tiny import train_tokenizer

CORPUS = ["a red square on a white page", "a blue circle on a white page", "drawn flat, no shadow"] * 3
# Scripts, an emoji of several code points, a control character, and words that look like special tokens.
STRANGE = ["größe", "квадрат", "正方形", "مربع", "चौकोर", "👩‍🚀🇫🇷", "\x07", "endoftext", "a😀b", "\u00ad", "x" * 30]


@pytest.fixture(scope="module")
def small() -> CLIPTokenizer:
    return train_tokenizer(CORPUS, vocab_size=560, max_length=200)


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("text", STRANGE)
def test_no_text_is_unknown(small: CLIPTokenizer, text: str) -> None:
    ids = small(text)["input_ids"]
    assert ids[0] == small.bos_token_id and ids[-1] == small.eos_token_id
    assert not {small.bos_token_id, small.eos_token_id, small.unk_token_id} & set(ids[1:-1])
    assert squeezed(small.decode(ids, skip_special_tokens=True)) == squeezed(text)


def test_every_character_round_trips(small: CLIPTokenizer) -> None:
    characters = [chr(code) for code in range(0x21, 0x3000) if chr(code).isalnum() and chr(code).islower()]
    assert len(characters) > 800
    for start in range(0, len(characters), 50):
        text = "".join(characters[start : start + 50])
        ids = small(text, truncation=False)["input_ids"][1:-1]
        assert small.unk_token_id not in ids
        assert squeezed(small.decode(ids)) == unicodedata.normalize("NFC", text)


def test_every_byte_is_a_token_inside_and_at_the_end_of_a_word(small: CLIPTokenizer) -> None:
    single = [token for token in small.get_vocab() if len(token.removesuffix("</w>")) == 1]
    assert len(single) == 512
    assert len({token for token in single if token.endswith("</w>")}) == 256


@pytest.mark.parametrize("vocab_size", [514, 530, 545])
def test_vocabulary_has_the_size_asked_for(vocab_size: int) -> None:
    tokenizer = train_tokenizer(CORPUS, vocab_size=vocab_size, max_length=16)
    assert len(tokenizer) == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))


def test_equally_frequent_pairs_merge_in_the_same_order_each_time() -> None:
    """Every pair here is as frequent as every other one."""
    words = [f"{first}{second}" for first in "abcdefgh" for second in "ijklmnop"]
    vocabularies = [train_tokenizer(words, vocab_size=560, max_length=16).get_vocab() for _ in range(6)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_small_corpus_gives_a_smaller_vocabulary() -> None:
    assert 514 < len(train_tokenizer(["red red"], vocab_size=5000, max_length=16)) < 530


def test_frequent_words_are_learnt(small: CLIPTokenizer) -> None:
    assert len(small("white page")["input_ids"]) == 2 + 2
    assert small("White  PAGE") == small("white page")


def test_long_text_is_cut_and_keeps_its_end() -> None:
    tokenizer = train_tokenizer(CORPUS, vocab_size=560, max_length=8)
    ids = tokenizer("a red square on a white page, a blue circle", truncation=True)["input_ids"]
    assert len(ids) == 8 == tokenizer.model_max_length
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids.count(tokenizer.eos_token_id) == 1


def test_saves_and_loads(small: CLIPTokenizer, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*CORPUS, *STRANGE]
    assert loaded(texts)["input_ids"] == small(texts)["input_ids"]
    assert loaded.model_max_length == 200 and len(loaded) == len(small)


def test_same_corpus_gives_the_same_tokenizer(small: CLIPTokenizer) -> None:
    again = train_tokenizer(iter(CORPUS), vocab_size=560, max_length=200)
    assert again.get_vocab() == small.get_vocab()


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="`vocab_size` is 513; expected 514 or more"):
        train_tokenizer(CORPUS, vocab_size=513, max_length=16)
