"""Recall gained over a base: against a plain loop over queries, on a real tiny model and drawn images."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.gain import measure_gain
from holistic_clip_hf.evaluation.records import Record, capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, embed_corpus

RUN = capture_provenance(model="mine", dataset="squares", split="test", seed=0)
K = 2


@pytest.fixture
def embedded(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset
) -> list[tuple[HolisticCLIPModel, EmbeddedCorpus]]:
    """Two models of different weights, and the corpus as each sees it."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = make_model(perspectives=["short", "colour"], vision={"num_branches": 2}, fusion="centroid").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1 * seed)
        found.append((model, embed_corpus(model, processor, corpus, perspectives=["short", "colour"])))
    return found


def plain_hits(seen: EmbeddedCorpus) -> list[bool]:
    """For each text of each perspective, whether one of its images is among the first K by the centroid; ties lose."""
    vectors = F.normalize(seen.branch_embeds.mean(dim=1), dim=-1)
    hits = []
    for owned in seen.captions.values():
        for text in dict.fromkeys(text for texts in owned for text in texts):
            scores = (vectors @ seen.text_embeds[text]).tolist()
            own = [text in texts for texts in owned]
            best = max(score for score, is_own in zip(scores, own, strict=True) if is_own)
            hits.append(sum(score >= best for score, is_own in zip(scores, own, strict=True) if not is_own) < K)
    return hits


def test_the_gain_is_that_of_a_plain_loop(embedded: list[tuple[HolisticCLIPModel, EmbeddedCorpus]]) -> None:
    records = measure_gain(*embedded, provenance=RUN, k=K)
    found = {record.metric: record for record in records if record.details["direction"] == "text_to_image"}
    before, after = (plain_hits(seen) for _, seen in embedded)
    assert found["recall_before"].value == pytest.approx(sum(before) / len(before))
    assert found["recall_after"].value == pytest.approx(sum(after) / len(after))
    assert found["recall_gain"].value == pytest.approx((sum(after) - sum(before)) / len(before))
    assert found["recall_gain"].counts == {"n_queries": len(before)}
    assert before != after, "the two differ"


def test_a_model_gains_nothing_over_itself(embedded: list[tuple[HolisticCLIPModel, EmbeddedCorpus]]) -> None:
    """Paired: what is hard for both does not widen the interval."""
    (one, _) = embedded
    gains: list[Record] = [
        record for record in measure_gain(one, one, provenance=RUN, k=K) if record.metric == "recall_gain"
    ]
    assert [(record.value, record.confidence_interval) for record in gains] == [(0.0, (0.0, 0.0))] * 2


def test_other_texts_are_refused(embedded: list[tuple[HolisticCLIPModel, EmbeddedCorpus]]) -> None:
    (model, seen), other = embedded
    fewer = replace(seen, captions={"short": seen.captions["short"]})
    with pytest.raises(ValueError, match="read different texts. Encode the corpus with one processor"):
        measure_gain((model, fewer), other, provenance=RUN)


def test_what_either_model_did_not_see_is_counted(
    embedded: list[tuple[HolisticCLIPModel, EmbeddedCorpus]],
) -> None:
    (base, before), (tuned, after) = embedded
    lost = {"red-square": "OSError"}
    records = measure_gain(
        (base, replace(before, left_out=lost)),
        (tuned, replace(after, left_out={**lost, "red-circle, short": "its text is blank"})),
        provenance=RUN,
        k=K,
    )
    assert {record.counts["n_unusable"] for record in records} == {2}


def test_other_images_are_refused(embedded: list[tuple[HolisticCLIPModel, EmbeddedCorpus]]) -> None:
    (model, seen), other = embedded
    with pytest.raises(ValueError, match="saw different images"):
        measure_gain((model, replace(seen, branch_embeds=seen.branch_embeds[1:])), other, provenance=RUN)
