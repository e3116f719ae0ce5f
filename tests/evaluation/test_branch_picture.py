"""The branch report as a picture: its numbers against the records', its cells where they belong."""

from collections.abc import Callable

import numpy as np
import pytest
from test_fusion_fitting import NAMES, corpus_of_known_branches

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.evaluation.branch_report import branch_panels, branch_picture, report_branches
from holistic_clip_hf.evaluation.records import Record, capture_provenance
from holistic_clip_hf.evaluation.retrieval import measure_retrieval

MakeModel = Callable[..., HolisticCLIPModel]
PROVENANCE = capture_provenance(model="known", dataset="known", split="test", seed=0)


@pytest.fixture
def records(make_model: MakeModel) -> list[Record]:
    model, corpus = make_model(perspectives=NAMES), corpus_of_known_branches()
    protocols = ["per_perspective", "standard"]
    return [
        *measure_retrieval(model, corpus, provenance=PROVENANCE, protocols=protocols),
        *report_branches(model, corpus, provenance=PROVENANCE),
    ]


def value_of(records: list[Record], label: str, **details: str) -> float:
    (found,) = [
        record.value
        for record in records
        if record.label == label
        and all(record.details.get(name) == value for name, value in details.items())
        and ("without" in record.details) == ("without" in details)
    ]
    return found


def test_the_numbers_are_those_of_the_records(records: list[Record]) -> None:
    recall, lost, by_name, wins, similarity = branch_panels(records, names=NAMES)
    assert recall.rows == NAMES and recall.columns == ["fused", *NAMES] and wins.columns == NAMES
    told = {"protocol": "per_perspective", "direction": "text_to_image"}
    for perspective in NAMES:
        fused = value_of(records, "recall@5", perspective=perspective, branch="fused", **told)
        for branch in NAMES:
            own = value_of(records, "recall@5", perspective=perspective, branch=branch, **told)
            assert recall.cells[perspective, branch] == pytest.approx(100 * own)
            without = value_of(records, "recall@5", perspective=perspective, without=branch, **told)
            assert lost.cells[perspective, branch] == pytest.approx(100 * (fused - without))
            won = value_of(records, "wins", perspective=perspective, branch=branch)
            assert wins.cells[perspective, branch] == pytest.approx(100 * won)
            if branch != perspective:
                gained = value_of(records, "gain_by_name", perspective=perspective, other=branch)
                assert by_name.cells[perspective, branch] == pytest.approx(100 * gained)
    assert similarity.cells["style", "short"] == similarity.cells["short", "style"]
    assert similarity.cells["short", "style"] == value_of(records, "similarity", branch="short", other="style")
    assert len(recall.cells) == 12 and len(lost.cells) == 9 and len(by_name.cells) == len(similarity.cells) == 6


def test_a_picture_has_ink_and_a_page_one_can_see_through(records: list[Record]) -> None:
    picture = branch_picture(records, names=NAMES)
    assert picture.mode == "RGBA" and picture.width > 2 * picture.height
    alpha = np.asarray(picture)[..., 3]
    assert alpha[0].max() == 0 and (alpha == 255).mean() > 0.1
    fewer = branch_picture([record for record in records if record.task == "retrieval"])
    assert fewer.width < picture.width, "what was not measured is not drawn"


def test_misuse_is_refused(records: list[Record], make_model: MakeModel) -> None:
    other = Record(**{**vars(records[0]), "model": "other"})
    with pytest.raises(ValueError, match="known on known, test; other on known, test. Pass those of one model"):
        branch_picture([*records, other])
    with pytest.raises(ValueError, match=r"None of 0 records is of a branch's text_to_image recall@5"):
        branch_picture([])
    one = make_model(perspectives=["short"], vision={"num_branches": 1})
    corpus = corpus_of_known_branches()
    alone = measure_retrieval(
        one, type(corpus)(corpus.branch_embeds[:, :1], corpus.captions, corpus.text_embeds), provenance=PROVENANCE
    )
    with pytest.raises(ValueError, match="a model with several branches"):
        branch_picture(alone)
