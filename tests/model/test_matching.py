"""Which branch a caption meets: an assignment that starves no branch, against loops and by counting."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import reference
from holistic_clip_hf.loss_holistic_clip import assign_branches, balanced_branches, branch_shares


def scores(captions: int, branches: int, kind: str) -> Tensor:
    """(K, H) cosines; in each kind but the first, taking the best branch leaves one without any caption."""
    similarity = 0.2 * torch.randn(captions, branches, dtype=torch.float64)
    if kind == "behind":  # as branches are at the start: one is always somewhat worse
        similarity[:, -1] = similarity[:, :-1].amin(dim=1) - 0.1
    elif kind == "indifferent":  # always near the others' mean, with an equal share of the plan and first nowhere
        similarity[:, -1] = similarity[:, :-1].mean(dim=1)
    elif kind == "far":
        similarity[:, -1] -= 1.5
    return similarity


@pytest.mark.parametrize("kind", ["random", "behind", "indifferent", "far"])
@pytest.mark.parametrize(("captions", "branches"), [(24, 4), (23, 3), (7, 5), (40, 2), (5, 1)])
def test_no_branch_starves(captions: int, branches: int, kind: str) -> None:
    similarity = scores(captions, branches, "random" if branches == 1 else kind)
    if kind != "random" and branches > 2:
        assert similarity.argmax(dim=1).bincount(minlength=branches)[-1] == 0
    counts = balanced_branches(similarity).bincount(minlength=branches)
    assert counts.min() >= captions // branches
    assert counts.max() <= captions // branches + captions % branches


@pytest.mark.parametrize("kind", ["random", "behind", "indifferent", "far"])
@pytest.mark.parametrize(("captions", "branches"), [(24, 4), (23, 3), (3, 5)])
def test_equals_sinkhorn_in_loops(captions: int, branches: int, kind: str) -> None:
    similarity = scores(captions, branches, kind)
    expected = reference.balanced(similarity.tolist())
    assert balanced_branches(similarity).tolist() == expected
    assert balanced_branches(similarity.float()).tolist() == expected


def test_balance_keeps_what_is_already_balanced() -> None:
    wanted = torch.arange(12) % 3
    similarity = 0.1 * torch.rand(12, 3) + 0.5 * F.one_hot(wanted, 3)
    assert torch.equal(balanced_branches(similarity), wanted)


def test_any_temperature_of_the_similarities_is_stable() -> None:
    similarity = 50 * scores(24, 4, "far").float()  # exp of these, divided by SwAV's epsilon, would overflow
    assert balanced_branches(similarity).bincount(minlength=4).tolist() == [6] * 4


def test_only_present_captions_of_free_slots_are_shared_out() -> None:
    branches = F.normalize(torch.randn(8, 3, 4), dim=-1)
    texts = branches[:, :1] + 0.1 * torch.randn(8, 3, 4)  # all captions are nearest to branch 0
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[5:, 1] = False
    texts[~mask] = torch.nan
    slots = [1, -1, -1]
    greedy = assign_branches(branches, texts, mask, slots)
    assert branch_shares(greedy[:, 1:], mask[:, 1:], 3).tolist() == [1.0, 0.0, 0.0]
    balanced = assign_branches(branches, texts, mask, slots, balanced=True)
    assert (balanced[:, 0] == 1).all()
    assert balanced[:, 1:][mask[:, 1:]].bincount().tolist() in ([5, 4, 4], [4, 5, 4], [4, 4, 5])


def test_shares_count_captions_that_are_there() -> None:
    assignment = torch.tensor([[0, 1], [0, 3], [3, 3]])
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    assert branch_shares(assignment, mask, 4).tolist() == [0.5, 0.25, 0.0, 0.25]
    assert branch_shares(assignment, mask & False, 4).tolist() == [0.0] * 4
