"""Tokenizers of SigLIP's and SigLIP 2's kinds, trained on a few words."""

import json
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast, Siglip2Tokenizer

WORDS = [
    "a red square on white",
    "one blue circle, drawn flat",
    "all green: a yellow shape",
    "café 日本語 <b>bold</b>!",
]
LENGTH = 48


def first_kind() -> Any:
    """Pieces of a unigram model, as T5's: lower case, without punctuation, an end that pads too."""
    tokenizer = Tokenizer(Unigram())
    steps = [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(WORDS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **marks)


def second_kind() -> Any:
    """Pairs of bytes and letters, as Gemma's: lower case, an end, bytes for what is unknown."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(WORDS * 20, trainers.BpeTrainer(vocab_size=400, special_tokens=marks + every_byte))
    model = json.loads(trained.to_str())["model"]
    tokenizer = Siglip2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=LENGTH
    )
    ending = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    return tokenizer
