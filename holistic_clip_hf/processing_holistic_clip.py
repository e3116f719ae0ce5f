# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor of Holistic CLIP: images and texts, and nested captions (several per image, some missing).

- Texts are cleaned as those were that CLIP's weights saw in training.
- An image has the same pixels whatever it comes as (path, bytes, array, tensor, Pillow): upright, 8 bits, in limits.
- Transparent images are composed on a background; dropping the alpha channel would show what was painted beneath.
- A special token written out inside a caption stays plain text.
- The same text has the same caption id in every process and every batch.
- A caption whose perspective is known is written in the form that the model was trained with.
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
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BatchEncoding,
    BatchFeature,
    CLIPTextConfig,
    PretrainedConfig,
    ProcessorMixin,
    image_utils,
    logging,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import to_pil_image
from transformers.image_utils import (
    ChannelDimension,
    infer_channel_dimension_format,
    is_pil_image,
    make_flat_list_of_images,
)
from transformers.tokenization_utils_base import LARGE_INTEGER

from .options_holistic_clip import require_form_of, write_caption

try:
    import ftfy
except ImportError:
    ftfy = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

WHITE = (255, 255, 255)  # the page that an image stands on in a browser
CLIP_POSITIONS = CLIPTextConfig.max_position_embeddings  # 77, which a configuration may leave out
_OF_THE_HUB = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")
# What pictures come in; not what makes Pillow start other programs (EPS), nor formats that hardly anything reads.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_BYTES = 256 * 2**20  # of a file
MAX_PIXELS = 178_956_970  # above, Pillow takes a file for a decompression bomb
MAX_RATIO = 100  # longer side by shorter; resizing the shorter side blows the longer one up
# Text is escaped once or twice by what wrote the web page; an end keeps `&amp;amp;amp;…` linear.
_MOST_ESCAPES = 16
# Printable ASCII and line breaks are what ftfy never changes; an entity it resolves as often as it is escaped.
_MAY_CHANGE = re.compile(r"[^\t\n\r -~]|&#?[0-9A-Za-z]{1,24};")
_LETTER = re.compile(r"[0-9A-Za-z]")
_MAY_VANISH = re.compile(r"[&\x1b]")  # letters of an entity or of a terminal's escape sequence
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # categories: controls, formats (no width), spaces, line and paragraph ends
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")
# The character tables of ftfy: https://github.com/rspeer/python-ftfy/blob/main/ftfy/chardata.py
_WIDE_OR_LIGATURE = [*"ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌ", *map(chr, range(0xFB00, 0xFB07)), "\u3000", *map(chr, range(0xFF01, 0xFFEF))]
_CONTROL = [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
PLAIN_LETTERS: dict[int, str] = {
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


def is_blank(text: str) -> bool:
    """Tell whether a text says nothing once it is cleaned: it is empty, or all spaces, controls and characters without
    width.

    >>> is_blank(" &nbsp; "), is_blank("\\u200b"), is_blank("?")
    (True, True, False)
    """
    if _LETTER.search(text) and not _MAY_VANISH.search(text):
        return False  # nearly all captions, of which none need be cleaned to know
    return all(unicodedata.category(character) in _UNSEEN for character in clean_caption(text))


def _is_escaped_without_end(text: str) -> bool:
    """Tell whether entities stand in entities more than `_MOST_ESCAPES` deep; ftfy would go over the text for each."""
    text = _TERMINAL_ESCAPE.sub("", text).translate(PLAIN_LETTERS)
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
    return unicodedata.normalize("NFC", _TERMINAL_ESCAPE.sub("", text).translate(PLAIN_LETTERS))


class HolisticCLIPProcessor(ProcessorMixin):
    """CLIP's image processor and tokenizer, joined.

    Args:
        image_processor: CLIP's.
        tokenizer: CLIP's.
        background: RGB, 0 to 255, on which transparent images are composed; white, like the page an image stands on.
        caption_form: Form that the model's captions had in training, such as `"{perspective}: {text}"`. Default: none,
            captions are as they are.
        caption_perspectives: Names of the perspectives that had captions in this form.

    Raises:
        ValueError: a background that is not a colour, a slow tokenizer, a form without `{text}`, or one without
            perspectives.

    Attributes:
        num_truncated: how many texts were cut at the tokenizer's `model_max_length` so far, in this process; a caption
            that stands several times in one call of `nested_captions` counts once. Not saved.
        tells_of_cuts: warn of the first that is cut. Not saved.

    Example:

    >>> batch = processor(images=[image], text=["a red square"], return_tensors="pt")
    >>> captions = processor.nested_captions([["a red square"], ["a blue circle", "circle, blue"]])
    >>> captions["caption_mask"]
    tensor([[ True, False],
            [ True,  True]])
    """

    # A tokenizer may have been made for a decoder, which pads in front; the model refuses that.
    text_kwargs = {"padding": True, "padding_side": "right", "truncation": True, "split_special_tokens": True}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        background: Sequence[int] = WHITE,
        caption_form: str | None = None,
        caption_perspectives: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if len(background) != 3 or not all(channel in range(256) for channel in background):
            raise ValueError(f"`background` must be three numbers from 0 to 255 (RGB); got {list(background)}.")
        if tokenizer is not None and not getattr(tokenizer, "is_fast", True):
            raise ValueError(
                f"`tokenizer` is a {type(tokenizer).__name__}, of the slow kind; expected one of the library "
                "`tokenizers`. Load it from a checkpoint that has a tokenizer.json, or convert it."
            )
        require_form_of(type(self).__name__, caption_form, caption_perspectives)
        self.background = [int(channel) for channel in background]
        self.caption_form, self.caption_perspectives = caption_form, list(caption_perspectives)
        self.num_truncated = 0
        self.tells_of_cuts = True
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "HolisticCLIPProcessor":
        """Load as inherited; a tokenizer that knows no limit takes that of the checkpoint's text tower.

        Raises:
            OSError: no such checkpoint.
            ValueError: a file of the tokenizer or the image processor holds what these cannot read.
        """
        try:
            found = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, ValueError, ImportError):
            raise
        except Exception as error:  # `tokenizers` raises bare ones, and what a file holds may be of any type
            raise ValueError(
                f"The processor of {str(pretrained_model_name_or_path)!r} cannot be loaded ({type(error).__name__}: "
                f"{str(error)[:300]}); expected what `save_pretrained` writes. Save or download it again."
            ) from error
        processor = found[0] if isinstance(found, tuple) else found
        if processor.tokenizer.model_max_length > LARGE_INTEGER:
            given = {name: kwargs[name] for name in _OF_THE_HUB if name in kwargs}
            config, _ = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **given)
            if config:  # else a processor alone
                tower = config.get("text_config") or {}
                processor.limit_texts(tower.get("max_position_embeddings", CLIP_POSITIONS))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved, as inherited; without a caption form, what earlier versions saved."""
        found = super().to_dict()
        if self.caption_form is None:
            for name in ("caption_form", "caption_perspectives"):
                found.pop(name, None)
        return found

    def write_caption(self, text: str, perspective: str | None) -> str:
        """Return a caption of a perspective as the model learned to read it.

        Args:
            text: Caption, or a query that one perspective is asked with.
            perspective: Name of the perspective. A text of another one, or of none, stays as it is.

        >>> processor.caption_form, processor.caption_perspectives = "{perspective}: {text}", ["palette"]
        >>> processor.write_caption("yellow", "palette"), processor.write_caption("yellow", "short")
        ('palette: yellow', 'yellow')
        """
        if self.caption_form is None or perspective not in self.caption_perspectives:
            return text
        return write_caption(self.caption_form, perspective, text)

    def limit_texts(self, num_positions: int) -> None:
        """Cut texts at the positions of a text tower, if the tokenizer does not cut them before."""
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, num_positions)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Turn images into `pixel_values` (N, 3, height, width), texts into `input_ids` and `attention_mask` (T, L).

        Unless told otherwise, texts are padded to the longest and cut at the tokenizer's `model_max_length`, the end
        token kept.

        Raises:
            ValueError: no image; a path, address, base64 or bytes of what is not of one of `FORMATS`; an image beyond
                the limits of `require_shape`, or with pixels that `eight_bits` refuses; a text that is not a string,
                or is empty. With `do_rescale=False`, arrays are taken as they are: without NaN, infinity and alpha.
        """
        texts = None if text is None else _checked_texts(text)
        self.validate_inputs(images=images, text=texts, **kwargs)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if texts is not None:
            data.update(self._tokenize(texts, **options["text_kwargs"]))
        if images is not None:
            images = self._checked_images(images, options["images_kwargs"])
            data.update(self.image_processor(images, **options["images_kwargs"]))
        return BatchFeature(data, tensor_type=options["text_kwargs"].get("return_tensors"))

    def nested_captions(
        self, captions: Sequence[Sequence[str | None]], perspectives: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Tokenise up to M captions for each of N images; `None` stands for a missing one.

        A slot is known by its place alone: a row that is shorter than the longest misses its *last* slots. Where one
        before them is missing, `None` has to hold its place.

        Args:
            captions: Captions of each image.
            perspectives: Names of the M slots, by which captions are written (`write_caption`). Default: captions are
                read as they are.

        Returns:
            `input_ids` and `attention_mask` (N, M, L) with L the longest caption, `caption_mask` (N, M) bool, and
            `caption_ids` (N, M) int64, equal exactly where two captions have the same tokens (`caption_id`).

        Raises:
            ValueError: no caption at all; a row that is not a list of strings and None, or is longer than
                `perspectives`; an empty caption.
        """
        present = _checked_captions(captions)
        if perspectives is not None:
            _require_names(captions, perspectives)
            present = {place: self._written(text, perspectives[place[1]]) for place, text in present.items()}
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

    def _written(self, text: str, perspective: str) -> str:
        """Write a clean caption; the form is cleaned with it, as that of a text is that was written before."""
        written = self.write_caption(text, perspective)
        return text if written == text else clean_caption(written)

    def _tokenize(self, texts: str | list[str], **options: Any) -> BatchEncoding:
        encoded = self.tokenizer(_lowered(texts), **options)
        num_cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        if num_cut and not self.num_truncated and self.tells_of_cuts:
            logger.warning(
                f"{num_cut} of {len(encoded.encodings)} texts are too long and cut (said once; see `num_truncated`): "
                f"`tokenizer.model_max_length` is {self.tokenizer.model_max_length} tokens. Remedy: shorter texts, or "
                "longer positions: `holistic-clip finetune` with `--max-length`, or, in Python, "
                "`holistic_clip_hf.initialization.stretch_text_positions` and a larger `model_max_length`."
            )
        self.num_truncated += num_cut
        return encoded

    def to_rgb(self, image: Any) -> Any:
        """Return one image as the model is to see it, of full size: a Pillow image in RGB, upright, on the background.

        Give it to what would read the image by other rules, such as transformers' pipelines.

        Args:
            image: Path, address, base64 or bytes of a file, Pillow image, array or tensor.

        Raises:
            ValueError: as a call of the processor.
        """
        return self._picture(_loaded(image), 0, None)

    def resized(self, image: Any) -> Any:
        """Return one image as `to_rgb`, resized as the image processor is to resize it, which a batch of large images
        can be held as: the processor makes the same `pixel_values` of it.

        An image processor that does not resize by Pillow gets the image in full size.

        Raises:
            ValueError: as a call of the processor.
        """
        return self._shrunk(self.to_rgb(image))

    def _checked_images(self, images: Any, options: dict[str, Any]) -> list[Any]:
        flat = make_flat_list_of_images(self.image_processor.fetch_images(_loaded(images)))
        if not flat:
            raise ValueError("`images` is empty. Give at least one image, or leave `images` out.")
        data_format = options.get("input_data_format")
        if not options.get("do_rescale", self.image_processor.do_rescale):
            flat = [
                image if is_pil_image(image) else _checked_array(image, position, data_format)
                for position, image in enumerate(flat)
            ]
            return [
                self._picture(image, position, data_format) if is_pil_image(image) else image
                for position, image in enumerate(flat)
            ]
        options.pop("input_data_format", None)  # of arrays, which become Pillow images
        pictures = (self._picture(image, position, data_format) for position, image in enumerate(flat))
        return [picture if options.keys() & _RESIZING else self._shrunk(picture) for picture in pictures]

    def _picture(self, image: Any, position: int, data_format: str | None) -> Any:
        try:
            image = image if is_pil_image(image) else from_array(image, data_format)
            require_shape(image.size)
            return on_background(image, self.background)
        except ValueError as error:
            raise ValueError(str(error).replace("The image", f"Image {position}", 1)) from error

    def _shrunk(self, image: Any) -> Any:
        """Resize as `PilBackend._preprocess` will: of all images of a batch, it holds the pixels at once."""
        made = self.image_processor
        if not made.do_resize or any(getattr(type(made), name, None) is not rule for name, rule in _PLAIN.items()):
            return image
        width, height = image.size
        # Plain where it was set by hand.
        size = {} if isinstance(made.size, int) else {name: side for name, side in dict(made.size).items() if side}
        if size.keys() == {"shortest_edge"}:
            shorter, (short, long) = size["shortest_edge"], sorted((width, height))
            longer = int(shorter * long / short)
            shape = (shorter, longer) if width <= height else (longer, shorter)
        elif size.keys() == {"height", "width"}:
            shape = (size["width"], size["height"])
        else:
            return image
        return image.resize(shape, made.resample)


# Resizing is done ahead of these alone; a processor with other ones may want the image as it is.
_PLAIN = {name: getattr(PilBackend, name) for name in ("process_image", "resize", "_preprocess", "preprocess")}
_RESIZING = {"do_resize", "size", "resample"}


def on_background(image: Any, background: Sequence[int] = WHITE) -> Any:
    """Return a Pillow image as a model is to see it: in RGB of 8 bits, upright, with nothing transparent.

    Args:
        image: Pillow image of any mode.
        background: Red, green and blue, 0 to 255, to compose a transparent image on.

    Raises:
        ValueError: as `eight_bits`.

    >>> on_background(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = eight_bits(upright(image))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    drawn = image.convert("RGBA")
    page = drawn.convert("RGB")
    page.paste(tuple(background), (0, 0, *page.size))
    page.paste(drawn, mask=drawn.getchannel("A"))
    return page


def upright(image: Any) -> Any:
    """Turn a Pillow image as its camera noted, and take the note off; many readers do not look at it.

    A damaged note is taken off and warned of once: the pixels are still an image. The same object comes back where
    there is nothing to do.
    """
    methods = image_utils.PIL.Image.Transpose
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        turn = methods[_TURNS[orientation]] if orientation in _TURNS else None
    except Exception as error:  # parsers raise whatever a damaged block leads them to
        logger.warning_once(
            f"An image has a damaged EXIF block ({type(error).__name__}), which may have said how the camera was "
            "held: such images are shown as they are stored (said once). Turn them by hand if they lie on their side."
        )
        return _without_notes(image.copy())
    return image if turn is None else _without_notes(image.transpose(turn))


_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_NOTES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # in which Pillow looks for it


def _without_notes(image: Any) -> Any:
    for name in _NOTES:
        image.info.pop(name, None)
    return image


_OF_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_PLAINER = {"La": "LA", "RGBa": "RGBA"} | dict.fromkeys(("RGBX", "CMYK", "YCbCr", "HSV", "LAB"), "RGB")
_OF_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")
_DEEP_FORMATS = ("PPM", "PNG")  # of which Pillow gives 16 bits as mode `I`, as earlier versions did of PNG


def eight_bits(image: Any) -> Any:
    """Return a Pillow image with 8 bits for each channel, in grey, palette or RGB, with its transparency.

    16 bits are scaled by their depth, which Pillow itself would clip to white. Whole numbers of 32 bits are taken for
    8 bits where none is above 255, else for 16.

    Raises:
        ValueError: pixels that are NaN or infinite; floats whose scale is unknown, 0 to 1 or 0 to 255; numbers that
            are negative or above the scale; a mode that cannot become RGB.
    """
    if image.mode in _OF_EIGHT_BITS:
        return image
    if image.mode in _PLAINER:
        return image.convert(_PLAINER[image.mode])
    if image.mode == "F":
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32)
        _require_floats(float(values.min()), float(values.max()))
        return image.convert("L")
    if image.mode != "I" and image.mode not in _OF_SIXTEEN_BITS:
        raise ValueError(f"The image has the mode {image.mode}, which is not read. Convert it to RGB.")
    is_deep = image.mode != "I" or image.format in _DEEP_FORMATS
    image = image.convert("I")
    low, high = image.getextrema()
    _require_levels(low, high)
    if is_deep or high > 255:
        image = image.point(lambda value: value * (1 / 257))  # exact: the quotient is cut as `//` cuts it
    image = image.convert("L")
    if is_deep and "transparency" in image.info:
        image.info["transparency"] //= 257
    return image


def require_shape(size: tuple[int, int]) -> None:
    """Refuse an image that costs more than it shows.

    Args:
        size: Width and height.

    Raises:
        ValueError: no pixels, more than `MAX_PIXELS`, or one side over `MAX_RATIO` times the other.
    """
    width, height = size
    if 0 in size:
        raise ValueError(f"The image has no pixels: it is {width} x {height}. Leave it out.")
    if width * height > MAX_PIXELS or max(size) > MAX_RATIO * min(size):
        raise ValueError(
            f"The image has {width:,} x {height:,} pixels; expected at most {MAX_PIXELS:,}, and no side over "
            f"{MAX_RATIO} times the other. Crop it, or leave it out."
        )


def _require_floats(low: float, high: float) -> None:
    if not math.isfinite(low + high):
        raise ValueError(
            "The image has pixels that are NaN or infinite, for which a model gives NaN. Leave it out, or mend them."
        )
    if low < 0 or high > 255:
        raise ValueError(f"The image has floats from {low:.6g} to {high:.6g}; expected 0 to 255. Scale them.")
    if 0 < high <= 1:
        raise ValueError(
            f"The image has floats from {low:.6g} to {high:.6g}, which may be shares of 1 or nearly black; expected 0 "
            "to 255. Multiply shares by 255, or give arrays of them with `do_rescale=False`."
        )


def _require_levels(low: int, high: int) -> None:
    if low < 0 or high > 65_535:
        raise ValueError(
            f"The image has whole numbers from {low:,} to {high:,}; expected 0 to 255, or 0 to 65,535. Scale them."
        )


def from_array(values: Any, data_format: str | None = None) -> Any:
    """Return the Pillow image of an array or tensor, by the rules of `eight_bits`.

    Args:
        values: (height, width), or with 1, 3 or 4 channels first or last.
        data_format: Order of the axes, `"channels_first"` or `"channels_last"`. Default: told by the shape.

    Raises:
        ValueError: as `eight_bits`; something else than an array, no pixels, or another shape.
    """
    if not hasattr(values, "dtype"):
        raise ValueError(
            f"The image is a {type(values).__name__}; expected a path, bytes, Pillow image, array or tensor."
        )
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if 0 in values.shape:
        raise ValueError(f"The image has no pixels: its shape is {tuple(values.shape)}. Leave it out.")
    values = _eight_bit_values(values)
    if values.ndim == 2:
        values, data_format = values[None], ChannelDimension.FIRST
    try:
        data_format = data_format or infer_channel_dimension_format(values, num_channels=(1, 3, 4))
    except ValueError as error:
        raise ValueError(
            f"The image has the shape {tuple(values.shape)}; expected a height, a width and 1, 3 or 4 channels, first "
            "or last. Reshape it."
        ) from error
    return to_pil_image(values, do_rescale=False, input_data_format=data_format)


def _eight_bit_values(values: Any) -> Any:
    kind = values.dtype.kind
    if kind == "b":
        return values.astype("uint8") * 255
    if values.dtype == "uint8":
        return values
    if kind not in "iuf":
        raise ValueError(f"The image has values of {values.dtype}; expected whole numbers or floats. Convert them.")
    low, high = values.min(), values.max()
    if kind == "f":
        _require_floats(float(low), float(high))
        return values.astype("uint8")
    _require_levels(int(low), int(high))
    return (values // 257 if values.dtype == "uint16" or high > 255 else values).astype("uint8")


def _loaded(images: Any) -> Any:
    """Return `images` with a Pillow image in place of each path, address, base64, file's bytes, open file, or image of
    `datasets` as it is stored.
    """
    if isinstance(images, (list, tuple)):
        return [_loaded(each) for each in images]
    if isinstance(images, Mapping):
        # A path in a row is not followed: who wrote the row may name any file.
        if not isinstance(images.get("bytes"), (bytes, bytearray, memoryview)):
            raise ValueError(
                f"`images` has {reprlib.repr(dict(images))}, without the bytes of a file; expected them under "
                "'bytes'. Read the file yourself, or give its path."
            )
        images = images["bytes"]
    if hasattr(images, "read"):
        images = _read_open_file(images)
    if isinstance(images, (bytearray, memoryview)):
        images = bytes(images)
    if not is_pil_image(images) and not hasattr(images, "shape") and not isinstance(images, (str, bytes, os.PathLike)):
        raise ValueError(
            f"`images` has {reprlib.repr(images)}; expected paths, bytes or open files, Pillow images, arrays or "
            "tensors."
        )
    if isinstance(images, (str, bytes, os.PathLike)):
        return _opened(images if isinstance(images, bytes) else os.fspath(images))
    is_grey = getattr(images, "ndim", 3) == 2 and not is_pil_image(images)
    return images[None] if is_grey else images  # transformers takes two axes for no image


def _read_open_file(file: Any) -> bytes:
    if file.seekable():
        file.seek(0)  # as Pillow does
    content = file.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        raise ValueError(
            f"`images` has {reprlib.repr(file)}, which gives text; expected bytes. Open the file in the mode 'rb'."
        )
    return content


def _opened(source: str | bytes) -> Any:
    """Open one as transformers does, but in `FORMATS` only: Pillow starts Ghostscript on EPS, by whatever name."""
    pillow = image_utils.PIL.Image
    pillow.init()
    formats = [name for name in FORMATS if name in pillow.OPEN]
    content = source if isinstance(source, bytes) else _content(source)
    told = f"`images` has {reprlib.repr(source)}, which"
    if len(content) > MAX_BYTES:
        raise ValueError(f"{told} is larger than {MAX_BYTES:,} bytes. Make the image smaller, or leave it out.")
    try:
        image = pillow.open(io.BytesIO(content), formats=formats)
    except Exception as error:  # parsers raise whatever a damaged file leads them to
        raise ValueError(
            f"{told} is not an image; expected the path, the address, the base64 or the bytes of one of "
            f"{', '.join(formats)}. Correct it, or convert the image."
        ) from error
    require_shape(image.size)  # before its pixels are decoded
    try:
        image.load()
    except Exception as error:  # as above
        raise ValueError(f"{told} does not decode ({type(error).__name__}: {error}). Leave it out.") from error
    return image


def _content(source: str) -> bytes:
    if source.startswith(("http://", "https://")):
        return image_utils.httpx.get(source, follow_redirects=True).content
    if os.path.isfile(source):
        with open(source, "rb") as file:
            return file.read(MAX_BYTES + 1)
    encoded = source.split(",")[1] if source.startswith("data:image/") and "," in source else source
    try:
        return base64.decodebytes(encoded.encode())
    except ValueError:
        return b""


def _checked_texts(text: Any) -> str | list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise ValueError(
            f"`text` must be a string or a list of strings; got {reprlib.repr(text)}. For several captions per image, "
            "use `nested_captions`."
        )
    cleaned = [clean_caption(one) for one in texts]
    empty = [position for position, one in enumerate(cleaned) if is_blank(one)]
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
    empty = [place for place, text in present.items() if is_blank(text)]
    if empty or not present:
        what = f"Captions are empty at (image, slot) {reprlib.repr(empty)}" if empty else "No image has a caption"
        raise ValueError(f"{what}. Put None where a caption is missing, and at least one caption in all.")
    return present


def _require_names(captions: Sequence[Sequence[str | None]], perspectives: Sequence[str]) -> None:
    longest = max(len(row) for row in captions)
    if isinstance(perspectives, str) or longest > len(perspectives):
        raise ValueError(
            f"`perspectives` is {reprlib.repr(perspectives)} and an image has {longest} captions; expected a name for "
            "each. Give the names of all slots, or leave them out."
        )


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


__all__ = [
    "HolisticCLIPProcessor",
    "caption_id",
    "clean_caption",
    "eight_bits",
    "is_blank",
    "on_background",
    "upright",
]
