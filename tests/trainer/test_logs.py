"""What people see of a training: one line for each log, and branches that stay copies of each other."""

import re
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from holistic_clip_hf.trainer import HolisticCLIPTrainer
from holistic_clip_hf.trainer.callbacks import BranchSimilarity

MakeTrainer = Callable[..., HolisticCLIPTrainer]


@pytest.mark.parametrize("num_branches", [2, 5])
def test_similarity_is_the_mean_cosine_of_two_branches(num_branches: int) -> None:
    embeds = F.normalize(torch.randn(7, num_branches, 8, generator=torch.manual_seed(0)), dim=-1)
    pairs = list(combinations(range(num_branches), 2))
    expected = sum(F.cosine_similarity(embeds[:, h], embeds[:, g], dim=-1).mean() for h, g in pairs) / len(pairs)
    similarity = BranchSimilarity()
    similarity.note(embeds[:3])
    similarity.note(embeds[3:])
    assert similarity.take()["branch_similarity"] == pytest.approx(expected.item(), abs=1e-6)
    assert similarity.take() == {}, "taken once"


def test_branches_that_stay_copies_are_warned_of_once(
    make_trainer: MakeTrainer, corpus: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(evaluation=corpus, eval_strategy="steps", eval_steps=1, max_steps=4, learning_rate=0.0)
    embeddings, others = trainer.model.vision_model.embeddings, trainer.model.config.num_branches - 1
    with torch.no_grad():  # every branch token that of CLIP, at CLIP's position
        embeddings.branch_class_embedding.copy_(embeddings.class_embedding.expand(others, -1))
        first = embeddings.position_embedding.weight[:1]
        embeddings.branch_position_embedding.copy_(first.expand(others, -1))
    trainer.train()
    told = [message for message in caplog.messages if "The branches are alike" in message]
    assert len(told) == 1 and "after step 2 (mean cosine 1.000)" in told[0] and "learning_rate_multipliers" in told[0]
    logged = [log["eval_branch_similarity"] for log in trainer.state.log_history if "eval_branch_similarity" in log]
    assert logged == pytest.approx([1.0] * 4, abs=1e-5)


def test_one_line_for_each_log_from_python(
    make_trainer: MakeTrainer, corpus: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of loss and of evaluation, with the time that is left, if the output is not a terminal."""
    make_trainer(evaluation=corpus, eval_strategy="steps", eval_steps=2, max_steps=4, logging_steps=2).train()
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("step")]
    assert len(lines) == 4 and "{" not in shown.out + shown.err
    assert re.fullmatch(r"step     2 of 4  loss [\d.]+, scale [\d.]+, lr \S+, \d\d:\d\d left", lines[0])
    assert re.search(r"held-out loss [\d.]+, text-to-image recall@5 [\d.]+%", lines[1])
    assert "left" not in lines[-1]


def test_evaluation_by_itself_has_a_line(
    make_trainer: MakeTrainer, corpus: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(evaluation=corpus)
    metrics = trainer.evaluate()
    assert f"step     0  held-out loss {metrics['eval_loss']:.3f}, " in capfd.readouterr().err
