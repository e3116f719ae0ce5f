# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Options of models, losses and captions: their valid names and numbers, and how others are refused."""

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from huggingface_hub.dataclasses import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.activations import ACT2FN

Config = TypeVar("Config", bound=PreTrainedConfig)

BRANCH_TYPES = ("cls", "mlp", "probe")
BRANCH_ISOLATIONS = ("isolated", "strict", "anchored", "open", "official")
PATCH_STEMS = ("linear", "convolutional")
MATCHINGS = ("aligned", "free", "balanced")
TEXT_POOLINGS = ("mean", "cls", "eos", "last")
OBJECTIVES = ("softmax", "sigmoid")
FUSIONS = ("centroid", "mean", "weighted", "routed", "max", "softmax")
DIVERSITIES = ("pairwise", "official")
LOSS_OPTIONS = (
    *("objective", "matching", "duplicate_captions", "fused_weight"),
    *("diversity", "diversity_weight", "diversity_threshold", "fusion", "branch_weights", "matryoshka_dims"),
)
DUPLICATE_CAPTIONS = ("positive", "ignore", "negative")


LOSS_CHOICES = {
    "fusion": FUSIONS,
    "objective": OBJECTIVES,
    "matching": MATCHINGS,
    "diversity": DIVERSITIES,
    "duplicate_captions": DUPLICATE_CAPTIONS,
}


def require_choice(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Raise `ValueError` unless an option has one of its valid values."""
    if value not in valid:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, valid))}.")


class _Kind(NamedTuple):
    """A kind of number: its test, and the words for it."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_COUNT = _Kind(lambda value: isinstance(value, int) and _is_number(value) and value >= 1, "a whole number, 1 or more")
_SHARE = _Kind(lambda value: _is_number(value) and 0 <= value < 1, "at least 0 and below 1")
_WEIGHT = _Kind(lambda value: _is_number(value) and value >= 0, "0 (off) or more, and finite")
_SPREAD = _Kind(lambda value: _is_number(value) and value >= 0, "0 or more, and finite")
_NUMBER = _Kind(_is_number, "a finite number")
# exp(88.7) is the largest number of float32.
_LOGARITHM = _Kind(lambda value: _is_number(value) and -88 <= value <= 88, "a logarithm from -88 to 88")
_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), _COUNT),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "num_channels", "image_size", "patch_size"), _COUNT),
    **dict.fromkeys(("projection_dim", "num_branches"), _COUNT),
    **dict.fromkeys(("attention_dropout", "patch_dropout"), _SHARE),
    **dict.fromkeys(("layer_norm_eps", "initializer_range", "initializer_factor"), _SPREAD),
    **dict.fromkeys(("fused_weight", "diversity_weight"), _WEIGHT),
    **dict.fromkeys(("diversity_threshold", "logit_bias_init_value"), _NUMBER),
    "logit_scale_init_value": _LOGARITHM,
}


def require_numbers(values: Mapping[str, Any], where: str = "") -> None:
    """Raise `ValueError` for NaN, infinity and sizes that no model can have; `where` is put before the names."""
    for name, value in values.items():
        kind = _KINDS.get(name)
        if kind is not None and not kind.holds(value):
            raise ValueError(f"`{where}{name}` is {value!r}; expected {kind.words}.")


def require_prefixes(widths: Any, whole: int | None = None) -> None:
    """Raise `ValueError` unless `matryoshka_dims` are distinct numbers of leading dimensions, of `whole` if known."""
    given: Any = widths if isinstance(widths, list | tuple) else [None]
    most = math.inf if whole is None else whole
    if len(set(given)) < len(given) or not all(_COUNT.holds(width) and width <= most for width in given):
        told = "1 or more" if whole is None else f"1 to {whole}, the width of the vectors"
        raise ValueError(
            f"`matryoshka_dims` is {widths!r}; expected whole numbers, {told}, each once. Leave it out to train whole "
            f"vectors alone."
        )


def require_tower(kind: type[CLIPTextConfig | CLIPVisionConfig], given: Mapping[str, Any], where: str = "") -> None:
    """Raise `ValueError` for fields of a tower that contradict each other; absent ones are the default."""
    require_numbers(given, where)
    width = given.get("hidden_size", kind.hidden_size)
    heads = given.get("num_attention_heads", kind.num_attention_heads)
    if width % heads:
        raise ValueError(
            f"`{where}num_attention_heads` is {heads}; expected a divisor of `hidden_size`, which is {width}."
        )
    activation = given.get("hidden_act", kind.hidden_act)
    if activation not in ACT2FN:
        raise ValueError(
            f"`{where}hidden_act` is {activation!r}; expected the name of an activation, such as 'gelu' or "
            f"'quick_gelu'."
        )


_PLACEHOLDER = re.compile(r"\{(text|perspective)\}")


def write_caption(form: str, perspective: str, text: str) -> str:
    """Return a caption in a form, in which `{text}` and `{perspective}` stand for what they name.

    >>> write_caption("{perspective}: {text}", "palette", "all red")
    'palette: all red'
    """
    # One pass, so that braces of a caption stay as they are.
    given = {"text": text, "perspective": perspective}
    return _PLACEHOLDER.sub(lambda found: given[found[1]], form)


def require_caption_form(where: str, form: Any) -> None:
    """Raise `ValueError` for a form that would lose the caption; `where` is what has it."""
    if form is not None and (not isinstance(form, str) or "{text}" not in form):
        raise ValueError(
            f"{where}: `caption_form` is {reprlib.repr(form)}; expected a form with {{text}}, such as "
            '"{perspective}: {text}". Write where the caption goes.'
        )


def require_form_of(where: str, form: str | None, perspectives: Sequence[str]) -> None:
    """Raise `ValueError` for a form that loses the caption, or that comes without the perspectives that it is for."""
    require_caption_form(where, form)
    are_names = not isinstance(perspectives, str) and all(isinstance(name, str) for name in perspectives)
    if not are_names or (form is None) != (not perspectives):
        raise ValueError(
            f"{where}: `caption_form` is {reprlib.repr(form)} and `caption_perspectives` is "
            f"{reprlib.repr(perspectives)}; expected a form and the names of the perspectives whose captions it "
            "writes, or neither. Add what is missing."
        )


@contextmanager
def as_value_error(name: str) -> Iterator[None]:
    """Make a field of another type than declared a ValueError, like all else that is refused, and name the class."""
    try:
        yield
    except (StrictDataclassClassValidationError, StrictDataclassFieldValidationError) as error:
        reason = str(error.__cause__).rstrip(".")
        raise ValueError(f"{name}: {reason}. Correct the value.") from error


def refusing_plainly(kind: type[Config]) -> type[Config]:
    """Construct a class with `as_value_error`."""
    construct = kind.__init__

    @wraps(construct)
    def construct_or_refuse(self: Config, *args: Any, **kwargs: Any) -> None:
        with as_value_error(kind.__name__):
            construct(self, *args, **kwargs)

    kind.__init__ = construct_or_refuse
    return kind
