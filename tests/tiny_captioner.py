"""Vision-language models of some ten thousand random weights, saved as a Hub folder: what a real captioner looks like.

`make_tiny_captioner` is a LLaVA, in which every image takes the same number of tokens. The others are there because
their caches and positions work differently: `make_tiny_qwen2_vl` counts positions in three dimensions and gives larger
images more tokens; `make_tiny_gemma3` has layers that see a window only, and lets the tokens of an image see each
other; `make_tiny_paligemma` lets the image see the prompt, and has no chat template. Their tokenizer has a token per
byte, so that any prompt fits; what they say is one character per token.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaddleOCRVLProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from conftest import randomise

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO = "<image>", "<image_begin>", "<image_end>", "<video>"
SPECIAL = [PAD, BEGIN, END, IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO]
VOCABULARY = 256 + len(SPECIAL)

ENDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**WIDTHS, **ENDS, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 4096}
VISION = WIDTHS

TURNS = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}IMAGE{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def chat_template(image: str) -> str:
    """Turns of a conversation, one to a line; `image` stands where an image is."""
    return TURNS.replace("IMAGE", image)


def token(name: str) -> int:
    return 256 + SPECIAL.index(name)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={token: index for index, token in enumerate([*alphabet, *SPECIAL])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.Fuse()  # not back to bytes, of which random ones are no text
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    named = {"image_token": IMAGE, "boi_token": IMAGE_BEGIN, "eoi_token": IMAGE_END, "video_token": VIDEO}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BEGIN, eos_token=END, extra_special_tokens=named
    )


def make_tiny_captioner(folder: Path, **sizes: int) -> Path:
    """A LLaVA, whose image takes (`image_size` / `patch_size`)² tokens.

    `sizes` may also be `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads` (of the text).
    """
    pixels, patch = sizes.pop("image_size", 16), sizes.pop("patch_size", 4)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=pixels, patch_size=patch),
        text_config=LlamaConfig(**{**TEXT, **sizes}),
        image_token_index=token(IMAGE),
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels})
    processor = LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which `default` leaves out again
        chat_template=chat_template(IMAGE),
    )
    return save(folder, LlavaForConditionalGeneration(config), processor)


def make_tiny_qwen2_vl(folder: Path) -> Path:
    """Positions in three dimensions (M-RoPE), and more tokens for larger images: from 4 to 64."""
    placed = {"image_token_id": token(IMAGE), "vision_start_token_id": token(IMAGE_BEGIN)}
    placed |= {"vision_end_token_id": token(IMAGE_END), "video_token_id": token(VIDEO)}
    rotary = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rotary}, vision_config=vision, **placed)
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=256, max_pixels=4096)
    # Qwen2-VL's own processor cannot be made without torchvision, which it reads videos with; this one does the same
    # with images.
    template = chat_template(IMAGE_BEGIN + IMAGE + IMAGE_END)
    processor = PaddleOCRVLProcessor(images, make_tokenizer(), chat_template=template)
    return save(folder, Qwen2VLForConditionalGeneration(config), processor)


def make_tiny_gemma3(folder: Path) -> Path:
    """Every other layer sees 8 tokens only, fewer than an image has; the tokens of an image see each other."""
    placed = {"image_token_index": token(IMAGE), "boi_token_index": token(IMAGE_BEGIN)}
    window = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config={**TEXT, **window, "head_dim": 8, "query_pre_attn_scalar": 8},
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=16,
        eoi_token_index=token(IMAGE_END),
        **placed,
    )
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = Gemma3Processor(
        images, make_tokenizer(), image_seq_length=16, chat_template=chat_template(IMAGE_BEGIN)
    )
    return save(folder, Gemma3ForConditionalGeneration(config), processor)


def make_tiny_paligemma(folder: Path) -> Path:
    """Image and prompt see each other wholly: what an image is to it depends on what is asked."""
    config = PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4},
        text_config={**TEXT, "model_type": "gemma", "head_dim": 8, "vocab_size": VOCABULARY + len(EXTRA_TOKENS)},
        image_token_index=token(IMAGE),
        projection_dim=WIDTHS["hidden_size"],
    )
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    return save(folder, PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, make_tokenizer()))


def save(folder: Path, model: PreTrainedModel, processor: ProcessorMixin) -> Path:
    """As a Hub repository: weights, and how to generate and to prepare inputs. Random, biases and norms included."""
    randomise(model)
    model.generation_config = GenerationConfig(**ENDS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
