# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor of Holistic CLIP: images and texts, and nested captions (several per image, some missing).

- Texts are cleaned as those were that CLIP's weights saw in training.
- Transparent images are composed on a background; dropping the alpha channel would show what was painted beneath.
- A special token written out inside a caption stays plain text.
- The same text has the same caption id in every process and every batch.
- What is cut is counted and said once; what cannot be read (no text, NaN pixels) is refused by its position.
"""

import base64
import hashlib
import html
import io
import math
import os
import re
import reprlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, BatchFeature, ProcessorMixin, image_utils, logging
from transformers.image_transforms import to_pil_image
from transformers.image_utils import (
    ChannelDimension,
    infer_channel_dimension_format,
    is_pil_image,
    load_image,
    make_flat_list_of_images,
)

try:
    import ftfy
except ImportError:
    ftfy = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

WHITE = (255, 255, 255)  # the page that an image stands on in a browser
# What an image given by its path or address may be, as in `images/decoding.py`, which does not travel with this file.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Text is escaped once or twice by what wrote the web page; an end keeps `&amp;amp;amp;…` linear.
_MOST_ESCAPES = 16
# Printable ASCII and line breaks are what ftfy never changes; an entity it resolves as often as it is escaped.
_MAY_CHANGE = re.compile(r"[^\t\n\r -~]|&#?[0-9A-Za-z]{1,24};")
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")
# The character tables of ftfy: https://github.com/rspeer/python-ftfy/blob/main/ftfy/chardata.py
_WIDE_OR_LIGATURE = [*"ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌ", *map(chr, range(0xFB00, 0xFB07)), "\u3000", *map(chr, range(0xFF01, 0xFFEF))]
_CONTROL = [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
_REPLACED: dict[int, str] = {
    **{ord(one): unicodedata.normalize("NFKC", one) for one in _WIDE_OR_LIGATURE},
    **dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **dict.fromkeys(_CONTROL, ""),
    ord("ŉ"): "'n",
    ord("ﬅ"): "ſt",
}


def caption_id(tokens: Sequence[int]) -> int:
    """Return a 63-bit number that two captions share exactly if they have the same tokens (up to hash collision, 1 in
    2^63).

    A model cannot tell captions apart that differ in capitals alone, or behind the last token that fits.
    """
    read = b"".join(int(token).to_bytes(8, "big") for token in tokens)
    return int.from_bytes(hashlib.blake2b(read, digest_size=8).digest(), "big") >> 1


def clean_caption(text: str) -> str:
    """Return the text as CLIP's weights saw it in training, but for lower case, which is the tokenizer's part.

    Mis-decoded letters are repaired, curly quotes, ligatures and full width made plain (ftfy), HTML entities resolved
    twice (web captions are often escaped twice) and white space folded: `basic_clean` and `whitespace_clean` of
    https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py. Without ftfy, all but mis-decoded letters.
    """
    if _MAY_CHANGE.search(text):
        if ftfy is None:
            logger.warning_once(
                "ftfy is not installed: mis-decoded letters in captions are not repaired, as they were for CLIP's "
                "training; such captions give other tokens and other caption ids than where ftfy is. Remedy: pip "
                "install ftfy"
            )
        text = _fixed_without_ftfy(text) if ftfy is None or _is_escaped_without_end(text) else ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


def _is_escaped_without_end(text: str) -> bool:
    """Tell whether entities stand in entities more than `_MOST_ESCAPES` deep; ftfy would go over the text for each."""
    text = _TERMINAL_ESCAPE.sub("", text).translate(_REPLACED)
    for _ in range(_MOST_ESCAPES):
        if (plain := ftfy.fixes.unescape_html(text)) == text:
            return False
        text = plain
    return True


def _fixed_without_ftfy(text: str) -> str:
    if "<" not in text:  # ftfy's sign that entities in the text are not meant
        for _ in range(_MOST_ESCAPES):
            text = html.unescape(text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", _TERMINAL_ESCAPE.sub("", text).translate(_REPLACED))


class HolisticCLIPProcessor(ProcessorMixin):
    """CLIP's image processor and tokenizer, joined.

    Args:
        image_processor: CLIP's.
        tokenizer: CLIP's.
        background: RGB, 0 to 255, on which transparent images are composed; white, like the page an image stands on.

    Attributes:
        num_truncated: how many texts were cut at the tokenizer's `model_max_length` so far, in this process; a caption
            that stands several times in one call of `nested_captions` counts once. Not saved.

    Example:

    >>> batch = processor(images=[image], text=["a red square"], return_tensors="pt")
    >>> captions = processor.nested_captions([["a red square"], ["a blue circle", "circle, blue"]])
    >>> captions["caption_mask"]
    tensor([[ True, False],
            [ True,  True]])
    """

    text_kwargs = {"padding": True, "truncation": True, "split_special_tokens": True}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        background: Sequence[int] = WHITE,
        **kwargs: Any,
    ) -> None:
        if len(background) != 3 or not all(channel in range(256) for channel in background):
            raise ValueError(f"`background` must be three numbers from 0 to 255 (RGB); got {list(background)}.")
        self.background = [int(channel) for channel in background]
        self.num_truncated = 0
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load a processor.

        Raises:
            OSError: no such checkpoint.
            ValueError: a file of the tokenizer or the image processor holds what these cannot read.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, ValueError, ImportError):
            raise
        except Exception as error:  # `tokenizers` raises bare ones, and what a file holds may be of any type
            raise ValueError(
                f"The processor of {str(pretrained_model_name_or_path)!r} cannot be loaded ({type(error).__name__}: "
                f"{str(error)[:300]}); expected what `save_pretrained` writes. Save or download it again."
            ) from error

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Turn images into `pixel_values` (N, 3, height, width), texts into `input_ids` and `attention_mask` (T, L).

        Unless told otherwise, texts are padded to the longest and cut at the tokenizer's `model_max_length`, the end
        token kept.

        Raises:
            ValueError: no image; a path, address or base64 of what is not of one of `FORMATS`; an image with NaN or
                infinite pixels, or with four channels that are not uint8; a text that is not a string, or is empty.
        """
        texts = None if text is None else _checked_texts(text)
        self.validate_inputs(images=images, text=texts, **kwargs)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if texts is not None:
            data.update(self._tokenize(texts, **options["text_kwargs"]))
        if images is not None:
            images = self._checked_images(images, options["images_kwargs"].get("input_data_format"))
            data.update(self.image_processor(images, **options["images_kwargs"]))
        return BatchFeature(data, tensor_type=options["text_kwargs"].get("return_tensors"))

    def nested_captions(self, captions: Sequence[Sequence[str | None]]) -> dict[str, Tensor]:
        """Tokenise up to M captions for each of N images; `None` stands for a missing one.

        A slot is known by its place alone: a row that is shorter than the longest misses its *last* slots. Where one
        before them is missing, `None` has to hold its place.

        Returns:
            `input_ids` and `attention_mask` (N, M, L) with L the longest caption, `caption_mask` (N, M) bool, and
            `caption_ids` (N, M) int64, equal exactly where two captions have the same tokens (`caption_id`).

        Raises:
            ValueError: no caption at all; a row that is not a list of strings and None; an empty caption.
        """
        present = _checked_captions(captions)
        unique = list(dict.fromkeys(present.values()))
        encoded = self._tokenize(unique, **self.text_kwargs)
        # The tokenizer's own `return_tensors` is slower than `torch.tensor`.
        tokens = {name: torch.tensor(encoded[name]) for name in ("input_ids", "attention_mask")}
        row_of_text = {text: row for row, text in enumerate(unique)}
        rows = torch.tensor([row_of_text[text] for text in present.values()])
        images, slots = torch.tensor(list(present)).unbind(1)
        shape = (len(captions), max(len(row) for row in captions))
        length = tokens["input_ids"].shape[1]
        input_ids = torch.full((*shape, length), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros((*shape, length), dtype=torch.long)
        caption_mask, caption_ids = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long)
        input_ids[images, slots] = tokens["input_ids"][rows]
        attention_mask[images, slots] = tokens["attention_mask"][rows]
        caption_mask[images, slots] = True
        lengths = tokens["attention_mask"].sum(dim=1).tolist()  # the tokenizer pads behind, as `encode_captions` needs
        ids = [caption_id(row[:length]) for row, length in zip(encoded["input_ids"], lengths, strict=True)]
        caption_ids[images, slots] = torch.tensor(ids)[rows]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "caption_mask": caption_mask,
            "caption_ids": caption_ids,
        }

    def _tokenize(self, texts: str | list[str], **options: Any) -> BatchEncoding:
        encoded = self.tokenizer(_lowered(texts), **options)
        num_cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        if num_cut and not self.num_truncated:
            logger.warning(
                f"{num_cut} of {len(encoded.encodings)} texts are too long and cut (said once; see `num_truncated`): "
                f"`tokenizer.model_max_length` is {self.tokenizer.model_max_length} tokens. Remedy: shorter texts, or "
                "`holistic_clip_hf.initialization.stretch_text_positions` and a larger `model_max_length`."
            )
        self.num_truncated += num_cut
        return encoded

    def _checked_images(self, images: Any, data_format: str | None) -> list[Any]:
        flat = make_flat_list_of_images(self.image_processor.fetch_images(_loaded(images)))
        if not flat:
            raise ValueError("`images` is empty. Give at least one image, or leave `images` out.")
        return [
            self._composed(image if is_pil_image(image) else _checked_array(image, position, data_format))
            for position, image in enumerate(flat)
        ]

    def _composed(self, image: Any) -> Any:
        return on_background(image, self.background) if is_pil_image(image) else image


def on_background(image: Any, background: Sequence[int] = WHITE) -> Any:
    """Return a Pillow image in which nothing is transparent and a channel has 8 bits, otherwise as it is.

    Args:
        image: Pillow image of any mode.
        background: Red, green and blue, 0 to 255, to compose a transparent image on.

    >>> on_background(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 257)).convert("L")  # Pillow would clip 16 bits to white
        if "transparency" in image.info:
            image.info["transparency"] //= 257
    if not image.has_transparency_data:
        return image
    drawn = image.convert("RGBA")
    page = drawn.convert("RGB")
    page.paste(tuple(background), (0, 0, *page.size))
    page.paste(drawn, mask=drawn.getchannel("A"))
    return page


def _loaded(images: Any) -> Any:
    """Return `images` with an image in place of each path, address or base64, as transformers loads it."""
    if isinstance(images, (list, tuple)):
        return [_loaded(each) for each in images]
    return load_image(_opened(images)) if isinstance(images, str) else images


def _opened(source: str) -> Any:
    """Open one as `load_image` does, but in `FORMATS` only: Pillow starts Ghostscript on EPS, by whatever name."""
    pillow = image_utils.PIL.Image
    pillow.init()
    formats = [name for name in FORMATS if name in pillow.OPEN]
    if source.startswith(("http://", "https://")):
        content = image_utils.httpx.get(source, follow_redirects=True).content
    elif os.path.isfile(source):
        with open(source, "rb") as file:
            content = file.read()
    else:
        encoded = source.split(",")[1] if source.startswith("data:image/") and "," in source else source
        try:
            content = base64.decodebytes(encoded.encode())
        except ValueError:
            content = b""
    try:
        return pillow.open(io.BytesIO(content), formats=formats)
    except OSError as error:
        raise ValueError(
            f"`images` has {reprlib.repr(source)}, which is not an image; expected the path, the address or the "
            f"base64 of one of {', '.join(formats)}. Correct it, or convert the image."
        ) from error


def _checked_texts(text: Any) -> str | list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise ValueError(
            f"`text` must be a string or a list of strings; got {reprlib.repr(text)}. For several captions per image, "
            "use `nested_captions`."
        )
    cleaned = [clean_caption(one) for one in texts]
    empty = [position for position, one in enumerate(cleaned) if not one]
    if empty or not cleaned:
        raise ValueError(f"`text` is empty{f' at {empty}' if empty else ''}. Leave empty texts out.")
    return cleaned[0] if isinstance(text, str) else cleaned


def _checked_captions(captions: Any) -> dict[tuple[int, int], str]:
    """Return the cleaned captions by (image, slot), row by row."""
    for image, row in enumerate(captions):
        valid = isinstance(row, Sequence) and not isinstance(row, str)
        if not valid or not all(text is None or isinstance(text, str) for text in row):
            raise ValueError(
                f"`captions` must have a list of strings (None where one is missing) per image; got "
                f"{reprlib.repr(row)} for image {image}."
            )
    present = {
        (image, slot): clean_caption(text)
        for image, row in enumerate(captions)
        for slot, text in enumerate(row)
        if text is not None
    }
    empty = [place for place, text in present.items() if not text]
    if empty or not present:
        what = f"Captions are empty at (image, slot) {reprlib.repr(empty)}" if empty else "No image has a caption"
        raise ValueError(f"{what}. Put None where a caption is missing, and at least one caption in all.")
    return present


def _checked_array(image: Any, position: int, data_format: str | None) -> Any:
    """Return the array or tensor as it is or, with an alpha channel, as a Pillow image."""
    if 0 in image.shape:
        raise ValueError(f"Image {position} has no pixels: its shape is {tuple(image.shape)}. Leave it out.")
    if "float" in str(image.dtype) and not math.isfinite(float(image.min()) + float(image.max())):
        raise ValueError(
            f"Image {position} has pixels that are NaN or infinite, for which a model gives NaN. Leave it out."
        )
    if image.ndim != 3:
        return image
    data_format = data_format or infer_channel_dimension_format(image, num_channels=(1, 3, 4))
    if image.shape[0 if data_format == ChannelDimension.FIRST else -1] != 4:
        return image
    if not str(image.dtype).endswith("uint8"):
        raise ValueError(
            f"Image {position} has four channels of {image.dtype}. Valid with an alpha channel: uint8, 0 to 255, or a "
            "Pillow image. Otherwise compose it on a background first."
        )
    return to_pil_image(image, do_rescale=False, input_data_format=data_format)


def _lowered(texts: str | list[str]) -> str | list[str]:
    """Lower the case as CLIP's own code does: Python knows a final sigma, the tokenizer's backend does not."""
    if isinstance(texts, list):
        return [one.lower() if "Σ" in one else one for one in texts]
    return _lowered([texts])[0]


__all__ = ["HolisticCLIPProcessor", "caption_id", "clean_caption", "on_background"]
