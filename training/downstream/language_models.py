"""Causal language models for downstream programs: a pretrained one by its name, or a small one from scratch."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from holistic_clip_hf.storage import shown
from holistic_clip_hf.trainer.recipes import train_tokenizer

FROM_SCRATCH = {"gpt2": "n_positions", "llama": "max_position_embeddings"}  # with the field of their longest text
TINY = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": {
        **{"model_type": "llama", "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
    },
}


def make_language_model(
    given: str | Mapping[str, Any], texts: Iterable[str], max_tokens: int
) -> tuple[PreTrainedModel, Any]:
    """Return a causal language model and its tokenizer, which has a token that pads.

    Args:
        given: Name or folder of a pretrained model, or fields of a configuration with `model_type` and `vocab_size`,
            for a model of random weights whose tokenizer is trained on `texts`.
        texts: Texts to train a tokenizer on.
        max_tokens: Longest sequence that the model will read.

    Raises:
        ValueError: a model of another kind, without an end token, or whose longest sequence is shorter.
    """
    if isinstance(given, str):
        # Half precision is a matter of the training (`bf16`), which keeps its weights whole.
        model = AutoModelForCausalLM.from_pretrained(
            given, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(given, trust_remote_code=False)
    else:
        model, tokenizer = _from_scratch(given, texts, max_tokens)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"`language_model` is {shown(given)}, whose tokenizer has no end token; expected one, at which generation "
            "stops. Choose another model."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    most = getattr(model.config, "max_position_embeddings", None) or max_tokens
    if most < max_tokens:
        raise ValueError(
            f"`language_model` reads {most} tokens at most; expected {max_tokens}, of image and text together. Lower "
            "`max_tokens`, or choose another model."
        )
    return model, tokenizer


def _from_scratch(given: Mapping[str, Any], texts: Iterable[str], max_tokens: int) -> tuple[PreTrainedModel, Any]:
    kind = given.get("model_type")
    if kind not in FROM_SCRATCH or not isinstance(given.get("vocab_size"), int):
        raise ValueError(
            f"`language_model` is {shown(given)}; expected the name of a causal language model, or `vocab_size` and "
            f"the `model_type` of one from scratch, {' or '.join(FROM_SCRATCH)}. Correct it."
        )
    tokenizer = train_tokenizer(texts, vocab_size=given["vocab_size"], max_length=max_tokens)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = {FROM_SCRATCH[kind]: max_tokens, **given, "vocab_size": len(tokenizer), **ids}
    config = CONFIG_MAPPING[kind](**{name: value for name, value in fields.items() if name != "model_type"})
    return AutoModelForCausalLM.from_config(config), tokenizer
