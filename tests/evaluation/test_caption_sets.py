"""Retrieval by all captions of an image at once, against loops over images, sets and captions."""

from types import SimpleNamespace

import pytest
import torch

from holistic_clip_hf import HolisticCLIPConfig
from holistic_clip_hf.evaluation.records import BY_NAME, FUSED, capture_provenance
from holistic_clip_hf.evaluation.retrieval import CAPTION_SETS, EmbeddedCorpus, caption_sets, measure_retrieval
from holistic_clip_hf.modeling_holistic_clip import BranchFusion
from reference import unit

PROVENANCE = capture_provenance(model="random", dataset="random", split="test", seed=0)
WIDTH, NAMES = 6, ("short", "style")
CAPTIONS = {
    "short": [["a fox"], ["an owl", "a bird"], [], ["a fox"], ["a cat"], []],
    "style": [["flat"], ["flat"], ["flat"], ["flat"], [], []],
}
# Images 0 and 3 are said to be the same, so each is correct for the other's set; image 5 has no caption.
SETS = [
    {("short", "a fox"), ("style", "flat")},
    {("short", "an owl"), ("short", "a bird"), ("style", "flat")},
    {("style", "flat")},
    {("short", "a cat")},
]
OWNS = [0, 1, 2, 0, 3, None]


def random_model(fusion: str, perspectives: tuple[str, ...] = NAMES) -> SimpleNamespace:
    weights = [0.7, 0.3] if fusion == "weighted" else None
    config = HolisticCLIPConfig(perspectives=perspectives, fusion=fusion, branch_weights=weights, projection_dim=WIDTH)
    torch.manual_seed(3)
    branch_fusion = BranchFusion(config)
    if branch_fusion.router is not None:
        torch.nn.init.normal_(branch_fusion.router.weight)
    return SimpleNamespace(config=config, branch_fusion=branch_fusion, logit_scale=torch.tensor(1.5))


def embedded(num_branches: int = 2) -> EmbeddedCorpus:
    texts = sorted({text for owned in CAPTIONS.values() for each in owned for text in each})
    images = unit(len(OWNS) * num_branches, WIDTH, seed=0).reshape(len(OWNS), num_branches, WIDTH)
    return EmbeddedCorpus(images, CAPTIONS, dict(zip(texts, unit(len(texts), WIDTH, seed=1), strict=True)))


def loop_scores(model: SimpleNamespace, corpus: EmbeddedCorpus, by: str) -> list[list[float]]:
    """Of each set with each image: the mean over captions, one after the other."""
    scores = []
    for one in SETS:
        scores.append([])
        for branches in corpus.branch_embeds:
            each = []
            for perspective, text in one:
                embed = corpus.text_embeds[text]
                if by == BY_NAME:
                    each.append((branches[NAMES.index(perspective)] @ embed).item())
                else:
                    scale = model.logit_scale.exp()
                    each.append(model.branch_fusion.similarity(branches[None], embed[None], scale).item())
            scores[-1].append(sum(each) / len(each))
    return scores


def loop_recall(scores: list[list[float]], is_right: list[list[bool]], k: int) -> float:
    hits = []
    for row, right in zip(scores, is_right, strict=True):
        if any(right):
            best = max(score for score, is_it in zip(row, right, strict=True) if is_it)
            ahead = [score for score, is_it in zip(row, right, strict=True) if score > best and not is_it]
            hits.append(len(ahead) < k)
    return sum(hits) / len(hits)


def turned(rows: list[list]) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)]


def test_a_set_is_all_that_is_said_of_an_image() -> None:
    sets, pairs = caption_sets(CAPTIONS)
    assert [set(one) for one in sets] == SETS
    assert pairs.tolist() == [[image, owned] for image, owned in enumerate(OWNS) if owned is not None]
    said_twice, _ = caption_sets({"short": [["a fox", "a fox"], ["a fox"]]})
    assert said_twice == [(("short", "a fox"),)]
    with pytest.raises(ValueError, match="No image has a caption"):
        caption_sets({"short": [[], []]})


@pytest.mark.parametrize("fusion", ["mean", "weighted", "routed", "softmax", "max"])
@pytest.mark.parametrize("by", [FUSED, BY_NAME])
def test_recalls_are_those_of_loops(fusion: str, by: str) -> None:
    model, corpus = random_model(fusion), embedded()
    records = measure_retrieval(model, corpus, provenance=PROVENANCE, protocols=[CAPTION_SETS], ks=(1, 2, 3))
    found = {
        (r.details["direction"], r.details["k"]): r
        for r in records
        if r.metric == "recall" and r.details["branch"] == by
    }
    with torch.no_grad():
        scores = loop_scores(model, corpus, by)
    is_right = [[owned == number for owned in OWNS] for number in range(len(SETS))]
    for k in (1, 2, 3):
        assert found["text_to_image", k].value == pytest.approx(loop_recall(scores, is_right, k))
        assert found["image_to_text", k].value == pytest.approx(loop_recall(turned(scores), turned(is_right), k))
    to_image, to_text = found["text_to_image", 1], found["image_to_text", 1]
    assert to_image.counts == {"n_queries": 4, "n_candidates": 6, "n_left_out": 0}
    assert to_text.counts == {"n_queries": 5, "n_candidates": 4, "n_left_out": 1}
    assert to_image.chance == pytest.approx((2 + 1 + 1 + 1) / 6 / 4)
    assert to_image.details["perspective"] == "all" and to_image.details["protocol"] == CAPTION_SETS


def test_by_name_needs_a_branch_for_every_perspective() -> None:
    def asked(perspectives: tuple[str, ...]) -> set[str]:
        model, corpus = random_model("mean", perspectives), embedded(len(perspectives))
        records = measure_retrieval(model, corpus, provenance=PROVENANCE, protocols=[CAPTION_SETS])
        return {record.details["branch"] for record in records}

    assert asked(NAMES) == asked(("style", "nouns", "short")) == {FUSED, BY_NAME}
    assert asked(("short", "nouns")) == asked(("all",)) == {FUSED}
