"""A byte-level BPE of CLIP's form, trained on a corpus: a small vocabulary makes a small text tower."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn merges from `texts`. Every byte is a token, so that no text, in any script, is unknown to it.

    Args:
        texts: what to learn merges from.
        vocab_size: entries in all: 512 hold the bytes (inside and at the end of a word), 2 start and end.
        max_length: longest text in tokens, start and end included; longer ones are cut.

    Raises:
        ValueError: no room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    single = [*alphabet, *(byte + END_OF_WORD for byte in alphabet)]
    num_merges = vocab_size - len(single) - 2
    if num_merges < 0:
        raise ValueError(f"`vocab_size` is {vocab_size}. Valid: {len(single) + 2} or more, to hold every byte.")
    merges = _learn_merges(texts, single, vocab_size)[:num_merges]
    tokens = [*single, *("".join(pair) for pair in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _learn_merges(texts: Iterable[str], single: list[str], vocab_size: int) -> list[tuple[str, str]]:
    form = CLIPTokenizer().backend_tokenizer  # only for how CLIP normalises and splits text
    bare = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    bare.normalizer, bare.pre_tokenizer = form.normalizer, form.pre_tokenizer
    # Of two pairs that are as frequent, the lower ids merge first. Left to the trainer, bytes at the end of a word get
    # theirs in the order of a hash table, which is another each time.
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=single, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    bare.train_from_iterator(texts, trainer)
    return [(first, second) for first, second in json.loads(bare.to_str())["model"]["merges"]]
