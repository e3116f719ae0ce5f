"""Retrieval on a stand-in model whose embeddings are one-hot keywords, so that every rank is known beforehand."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch import nn

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation import retrieval as protocols
from holistic_clip_hf.evaluation.records import FUSED, Record, capture_provenance
from holistic_clip_hf.evaluation.retrieval import (
    EmbeddedCorpus,
    embed_corpus,
    evaluate_retrieval,
    measure_retrieval,
)
from holistic_clip_hf.modeling_holistic_clip import BranchFusion
from reference import clip_benchmark_recall, unit

WORDS = ("<pad>", "fox", "owl", "elephant", "cat", "flat", "watercolour", "photo")
PROVENANCE = capture_provenance(model="keywords", dataset="drawings", split="test", seed=0)

# Each image: the words that its two branches read, and its captions. The cat has no caption of its object.
DRAWINGS = (
    (("fox", "flat"), {"object": "fox", "style": "flat"}),
    (("owl", "flat"), {"object": "owl", "style": "flat"}),
    (("elephant", "watercolour"), {"object": "elephant", "style": " watercolour"}),
    (("cat", "watercolour"), {"style": "watercolour"}),
)


class KeywordModel(nn.Module):
    """Branch h of an image is the one-hot word in its colour channel h; a text is the sum of its words."""

    device = torch.device("cpu")

    def __init__(self, perspectives: tuple[str, ...] = ("object", "style"), fusion: str = "mean") -> None:
        super().__init__()
        weights = [1.0] * len(perspectives) if fusion == "weighted" else None
        self.config = HolisticCLIPConfig(
            perspectives=perspectives, fusion=fusion, branch_weights=weights, projection_dim=len(WORDS)
        )
        self.branch_fusion = BranchFusion(self.config)
        self.logit_scale = torch.tensor(3.0)
        self.frozen = nn.Dropout()
        self.seen_texts: list[int] = []
        self.seen_modes: list[bool] = []

    def get_image_features(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen_modes += [self.training, torch.is_grad_enabled()]
        words = pixel_values[:, : len(self.config.perspectives), 0, 0].long()
        branches = nn.functional.one_hot(words, len(WORDS)).float()
        return SimpleNamespace(branch_embeds=branches)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        self.seen_modes += [self.training, torch.is_grad_enabled()]
        self.seen_texts += [len(input_ids)]
        assert torch.equal(attention_mask.bool(), input_ids > 0)
        words = nn.functional.one_hot(input_ids, len(WORDS)).sum(dim=1).float()
        return SimpleNamespace(text_embeds=nn.functional.normalize(words, dim=-1))


def processor(images=None, text=None, *, return_tensors, padding=None, truncation=None) -> dict[str, torch.Tensor]:
    assert return_tensors == "pt"
    if images is not None:
        return {
            "pixel_values": torch.tensor([image.convert("RGB").getpixel((0, 0)) for image in images])[:, :, None, None]
        }
    assert padding and truncation
    rows = [[WORDS.index(word) for word in one.split()] for one in text]
    length = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": input_ids, "attention_mask": mask}


def corpus(order: tuple[int, ...] = (0, 1, 2, 3)) -> Dataset:
    captions = List({name: Value("string") for name in ("perspective", "text", "source")})
    features = Features(
        {"image_id": Value("string"), "image": Image(), "captions": captions, "artist": Value("string")}
    )
    rows = [
        {
            "image_id": str(index),
            "image": PILImage.new("RGB", (2, 2), (*map(WORDS.index, DRAWINGS[index][0]), 0)),
            "captions": [{"perspective": p, "text": t, "source": "me"} for p, t in DRAWINGS[index][1].items()],
            "artist": "someone",
        }
        for index in order
    ]
    return Dataset.from_list(rows, features=features)


def measure(model: nn.Module | None = None, dataset: Dataset | None = None, **options) -> dict[tuple, object]:
    options = {"perspectives": ["object", "style"], "ks": (1, 3), "batch_size": 3, **options}
    records = evaluate_retrieval(
        model or KeywordModel(), processor, corpus() if dataset is None else dataset, provenance=PROVENANCE, **options
    )
    keyed = {(r.details["perspective"], r.details["direction"], r.details["branch"], r.label): r for r in records}
    assert len(keyed) == len(records)
    return keyed


def test_every_number_of_a_known_model():
    values = {key: record.value for key, record in measure().items()}

    for branch in ("fused", "object"):
        assert values["object", "text_to_image", branch, "recall@1"] == 1.0
        assert values["object", "image_to_text", branch, "recall@1"] == 1.0
        assert values["object", "text_to_image", branch, "median_rank"] == 1.0
    for branch in ("fused", "style"):
        assert values["style", "text_to_image", branch, "recall@1"] == 1.0
        assert values["style", "image_to_text", branch, "recall@1"] == 1.0
    # The style branch scores zero for every object: three of four images tie with the right one, and go first.
    assert values["object", "text_to_image", "style", "recall@1"] == 0.0
    assert values["object", "text_to_image", "style", "recall@3"] == 0.0
    assert values["object", "text_to_image", "style", "median_rank"] == 4.0
    # Of three object texts two tie with the right one.
    assert values["object", "image_to_text", "style", "recall@1"] == 0.0
    assert values["object", "image_to_text", "style", "recall@3"] == 1.0
    # Two of four images are right for a style, so at worst the third is.
    assert values["style", "text_to_image", "object", "recall@3"] == 1.0
    assert values["object", "text_to_image", "object", "mean_average_precision"] == 1.0
    assert values["object", "image_to_text", "style", "mean_average_precision"] == pytest.approx(1 / 3)
    assert len(values) == 2 * 2 * 3 * 4  # perspectives, directions, fused and branches, metrics


def test_captions_of_the_same_tokens_are_one_text():
    """Of four captions two are each other's, but for capitals: no model could tell them apart."""

    def lower(text=None, **options):
        return processor(text=None if text is None else [one.lower() for one in text], **options)

    rows = [
        {
            "image": PILImage.new("RGB", (2, 2), (WORDS.index(text.lower()), WORDS.index("flat"), 0)),
            "captions": [{"perspective": "object", "text": text}],
        }
        for text in ("fox", "Fox", "owl", "OWL")
    ]
    dataset = Dataset.from_list(rows, features=Features({"image": Image(), "captions": corpus().features["captions"]}))
    records = evaluate_retrieval(
        KeywordModel(), lower, dataset, provenance=PROVENANCE, perspectives=["object"], ks=(1,)
    )
    recalls = [record for record in records if record.label == "recall@1" and record.details["branch"] == "object"]
    assert [record.value for record in recalls] == [1.0, 1.0]
    assert [record.counts["n_queries"] for record in recalls] == [2, 4]


def test_counts_chance_and_what_makes_a_record_repeatable():
    records = measure()

    text_to_image = records["object", "text_to_image", "fused", "recall@1"]
    assert text_to_image.counts == {"n_queries": 3, "n_candidates": 4, "n_left_out": 0}
    assert text_to_image.chance == 1 / 4
    assert text_to_image.confidence_interval == (1.0, 1.0)
    image_to_text = records["object", "image_to_text", "fused", "recall@1"]
    assert image_to_text.counts == {"n_queries": 3, "n_candidates": 3, "n_left_out": 1}  # the cat
    # " watercolour" and "watercolour" are one text: two queries, each with two right images of four.
    style = records["style", "text_to_image", "style", "recall@1"]
    assert style.counts == {"n_queries": 2, "n_candidates": 4, "n_left_out": 0}
    assert style.chance == pytest.approx(0.5)
    assert style.details == {
        "protocol": "per_perspective",
        "perspective": "style",
        "direction": "text_to_image",
        "branch": "style",
        "k": 1,
    }
    assert text_to_image.details["fusion"] == "mean"
    assert records["style", "text_to_image", "style", "median_rank"].chance == 1.0
    assert (style.model, style.dataset, style.split, style.task) == ("keywords", "drawings", "test", "retrieval")
    assert (style.timestamp, style.command) == (PROVENANCE.timestamp, PROVENANCE.command)


def test_results_do_not_depend_on_batch_size_or_row_order():
    expected = {key: record.value for key, record in measure().items()}

    for options in ({"batch_size": 1}, {"batch_size": 100}, {"dataset": corpus((3, 1, 0, 2))}):
        assert {key: record.value for key, record in measure(**options).items()} == expected


def test_every_fusion_is_measured():
    """The better branch of two: the fox's score is 1 where its mean is 1/2, and no other image reaches it."""
    values = measure(KeywordModel(fusion="max"))
    assert values["object", "text_to_image", "fused", "recall@1"].value == 1.0
    assert values["object", "text_to_image", "fused", "recall@1"].details["fusion"] == "max"


def protocol_records(protocol: str) -> dict[tuple, Record]:
    records = evaluate_retrieval(
        KeywordModel(),
        processor,
        corpus(),
        provenance=PROVENANCE,
        perspectives=["object", "style"],
        protocols=[protocol],
        ks=(1, 2),
    )
    return {
        (r.details["perspective"], r.details["direction"], r.label): r for r in records if r.details["branch"] == FUSED
    }


def test_standard_protocol_takes_all_captions_each_with_its_own_image():
    records = protocol_records("standard")
    to_image, to_text = (records["all", d, "recall@1"] for d in ("text_to_image", "image_to_text"))
    assert to_image.counts == {"n_queries": 7, "n_candidates": 4, "n_left_out": 0}
    assert to_text.counts == {"n_queries": 4, "n_candidates": 7, "n_left_out": 0}
    # Three objects find their image; a style is that of two images, and the other one goes first.
    assert to_image.value == pytest.approx(3 / 7) and records["all", "text_to_image", "recall@2"].value == 1.0
    # Its object is each image's own and as good as the style, which another image's caption repeats: a tie.
    assert to_text.value == 0.0
    assert to_text.chance == pytest.approx((2 + 2 + 2 + 1) / 7 / 4)


def test_paper_protocol_pairs_one_caption_with_one_image():
    records = protocol_records("paper")
    objects = records["object", "text_to_image", "recall@1"]
    assert objects.counts == {"n_queries": 3, "n_candidates": 3, "n_left_out": 0}  # no cat, on either side
    cat = records["object", "image_to_text", "recall@1"].counts
    assert cat == {"n_queries": 3, "n_candidates": 3, "n_left_out": 1}
    assert objects.value == 1.0 and objects.chance == pytest.approx(1 / 3)
    styles = {name: records["style", "image_to_text", name].value for name in ("recall@1", "recall@2", "median_rank")}
    assert styles == {"recall@1": 0.0, "recall@2": 1.0, "median_rank": 2.0}


@pytest.mark.parametrize("num_images", [12, 3])
def test_standard_protocol_is_clip_benchmarks(num_images: int) -> None:
    """Images with one to four captions, of two perspectives; with three images there are fewer than k."""
    captions = {
        "short": [[f"short {image} {number}" for number in range(image % 3)] for image in range(num_images)],
        "style": [[f"style {image}"] for image in range(num_images)],
    }
    owners = [image for owned in captions.values() for image, texts in enumerate(owned) for _ in texts]
    texts = [text for owned in captions.values() for each in owned for text in each]
    branches, embeds = unit(num_images, len(WORDS), seed=0)[:, None], unit(len(texts), len(WORDS), seed=1)
    embedded = EmbeddedCorpus(branches, captions, dict(zip(texts, embeds, strict=True)))
    records = measure_retrieval(
        KeywordModel(("object",)), embedded, provenance=PROVENANCE, protocols=["standard"], ks=(1, 5, 10)
    )
    found = {(r.details["direction"], r.details["k"]): r.value for r in records if r.metric == "recall"}
    scores = (embeds.double() @ branches[:, 0].double().T).tolist()
    is_right = [[image == owner for image in range(num_images)] for owner in owners]
    for k in (1, 5, 10):
        assert found["text_to_image", k] == pytest.approx(clip_benchmark_recall(scores, is_right, k))
        turned = [list(column) for column in zip(*scores, strict=True)]
        right = [list(column) for column in zip(*is_right, strict=True)]
        assert found["image_to_text", k] == pytest.approx(clip_benchmark_recall(turned, right, k))


def test_further_captions_are_counted_where_the_protocol_leaves_them_out():
    one, two = protocols.paper({"object": [["fox", "red fox", "fox"], [], ["owl"]]}), protocols.standard
    assert [(q.texts, q.images.tolist(), q.num_images_out, q.num_texts_out) for q in one] == [
        (["fox", "owl"], [0, 2], 1, 2)
    ]
    (question,) = two({"object": [["fox", "red fox", "fox"], [], ["owl"]]})
    assert len(question.texts) == 4 and question.num_texts_out == question.num_images_out == 0


def test_one_branch_is_measured_once():
    keys = measure(KeywordModel(("object",)), ks=(1,), perspectives=["object"])
    assert {branch for _, _, branch, _ in keys} == {"fused"}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            KeywordModel(),
            {"perspectives": ["object", "mood"]},
            "caption of mood. It has object, style",
        ),
        (KeywordModel(), {"perspectives": []}, "`perspectives` is empty"),
        (
            KeywordModel(),
            {"protocols": ["paper", "karpathy"]},
            r"`protocols` has \['karpathy'\]; expected some of per_perspective",
        ),
        (KeywordModel(("fused", "style")), {}, "A branch is called 'fused'"),
        (KeywordModel(), {"dataset": corpus().select([])}, "It has no captions"),
    ],
)
def test_misuse_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        measure(model, **options)


def test_each_row_and_caption_that_is_left_out_counts(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset
) -> None:
    """Two rows of one id without an image, and two blank captions of one perspective of another row: four."""
    rows = corpus.to_list()
    for row in rows[:2]:
        row["image_id"], row["image"] = "same", None
    blank = {"perspective": "short", "text": " ", "source": "test"}
    rows[2]["captions"] += [blank, blank]
    seen = embed_corpus(
        make_model(), processor, Dataset.from_list(rows, features=corpus.features), perspectives=["short"]
    )
    third = corpus["image_id"][2]
    assert list(seen.left_out) == [f"{third}, short", f"{third}, short, caption 4", "same", "same (row 1)"]
    assert len(seen.branch_embeds) == 6
