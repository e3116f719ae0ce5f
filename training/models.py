"""A recipe's model and processor: from scratch, or taken over from a CLIP checkpoint."""

from collections.abc import Iterator

from datasets import Dataset
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.initialization import from_clip
from training.recipe import Recipe
from training.tokenizer import train_tokenizer


def make_processor(recipe: Recipe, corpus: Dataset) -> HolisticCLIPProcessor:
    """CLIP's image processor at the recipe's size, or the checkpoint's; a tokenizer trained on the corpus, or taken.

    Raises:
        ValueError: the checkpoint's images are of another size than the recipe's.
    """
    size = recipe.image_size
    crop = {"height": size, "width": size}
    if recipe.start_from is None:
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop)
    else:
        image_processor = CLIPImageProcessorPil.from_pretrained(recipe.start_from)
        if dict(image_processor.crop_size) != crop:
            raise ValueError(
                f"{recipe.start_from} sees images of {dict(image_processor.crop_size)}; `image_size` of recipe "
                f"{recipe.name!r} is {size}. Set it to the checkpoint's."
            )
    return HolisticCLIPProcessor(image_processor, make_tokenizer(recipe, corpus))


def make_tokenizer(recipe: Recipe, corpus: Dataset) -> CLIPTokenizer:
    """Trained on the corpus or, where the recipe names a checkpoint, taken from there, at the recipe's length."""
    if "checkpoint" not in recipe.tokenizer:
        return train_tokenizer(caption_texts(corpus), **recipe.tokenizer)
    max_length = recipe.tokenizer["max_length"]
    return CLIPTokenizer.from_pretrained(recipe.tokenizer["checkpoint"], model_max_length=max_length)


def caption_texts(corpus: Dataset) -> Iterator[str]:
    """All captions of a corpus, without decoding its images."""
    for captions in corpus.select_columns("captions")["captions"]:
        for caption in captions:
            yield caption["text"]


def make_model(recipe: Recipe, run: str, tokenizer: CLIPTokenizer) -> HolisticCLIPModel:
    """The model of a run before its first step, with a text position for each token of the tokenizer's length.

    Raises:
        ValueError: the tokenizer knows tokens that the checkpoint's text tower does not.
    """
    fields = recipe.model_fields(run)
    fields["text_config"]["max_position_embeddings"] = tokenizer.model_max_length
    if recipe.start_from is not None:
        model = from_clip(recipe.start_from, seed=recipe.seed, **fields)
        known = model.config.text_config.vocab_size
        if len(tokenizer) > known:
            raise ValueError(
                f"The tokenizer of recipe {recipe.name!r} has {len(tokenizer)} tokens, {recipe.start_from} knows "
                f"{known}. Take the tokenizer from the same checkpoint."
            )
        return model
    fields["text_config"] |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return HolisticCLIPModel(HolisticCLIPConfig(**fields))
