"""Vision-language models of some ten thousand random weights, saved as a Hub folder: what a real captioner looks like.

`make_tiny_captioner` is a LLaVA, in which every image takes the same number of tokens. The others are there because
their caches and positions work differently: `make_tiny_qwen2_vl` counts positions in three dimensions and gives larger
images more tokens; `make_tiny_gemma3` has layers that see a window only, and lets the tokens of an image see each
other. Their tokenizer knows bytes, so that any prompt fits, and what they say is bytes too.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO = "<image>", "<image_begin>", "<image_end>", "<video>"
SPECIAL = [PAD, BEGIN, END, IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO]
VOCABULARY = 256 + len(SPECIAL)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}IMAGE_TOKENS{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={token: index for index, token in enumerate([*alphabet, *SPECIAL])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    named = {"image_token": IMAGE, "boi_token": IMAGE_BEGIN, "eoi_token": IMAGE_END, "video_token": VIDEO}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BEGIN, eos_token=END, extra_special_tokens=named
    )


def token(name: str) -> int:
    return 256 + SPECIAL.index(name)


def make_tiny_captioner(folder: Path, **sizes: int) -> Path:
    """A LLaVA. `sizes`: `hidden_size`, `num_hidden_layers`, `num_attention_heads` (text), `image_size`, `patch_size`.

    Its image takes (`image_size` / `patch_size`)² tokens.
    """
    text, pixels, patch = _text_sizes(sizes), sizes.pop("image_size", 16), sizes.pop("patch_size", 4)
    _refuse_unknown(sizes)
    vision = CLIPVisionConfig(
        **{**_VISION, "num_hidden_layers": 2, "image_size": pixels, "patch_size": patch, "projection_dim": 16}
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text, vocab_size=VOCABULARY),
        image_token_index=token(IMAGE),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=(pixels // patch) ** 2,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels})
    processor = LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE.replace("IMAGE_TOKENS", IMAGE),
        num_additional_image_tokens=1,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
_TOKENS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258, "max_position_embeddings": 4096}


def _text_sizes(sizes: dict[str, int]) -> dict[str, Any]:
    taken = {name: sizes.pop(name, value) for name, value in _TEXT.items()}
    return {**taken, **_TOKENS, "intermediate_size": 2 * taken["hidden_size"], "num_key_value_heads": 2}


def _refuse_unknown(sizes: dict[str, int]) -> None:
    if sizes:
        raise ValueError(f"Got the sizes {sorted(sizes)}, which this model does not have.")


def _save(folder: Path, model: PreTrainedModel, processor: ProcessorMixin) -> Path:
    randomise_all(model)
    model.generation_config = GenerationConfig(**{name: _TOKENS[name] for name in list(_TOKENS)[:3]})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
