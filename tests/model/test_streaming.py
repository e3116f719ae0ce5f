"""Streaming changes nothing: not the value, not the gradients, whatever the block, the precision or who asks."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from holistic_clip_hf import MultiToMultiLoss
from holistic_clip_hf.loss_holistic_clip import CaptionBatch
from reference import loss_of

IMAGES, BRANCHES, SLOTS, WIDTH = 7, 3, 4, 5
NAMES = ("branch_embeds", "text_embeds", "logit_scale")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
CASES = list(
    product(["softmax", "sigmoid"], ["aligned", "free", "balanced"], ["positive", "ignore", "negative"], [False, True])
)


def rows(images: int, dtype: torch.dtype, *, gathered: bool, width: int = WIDTH) -> dict[str, Tensor]:
    """Leaves of the graph by name; with `gathered`, the rows of all ranks are leaves of their own."""
    generator = torch.Generator().manual_seed(5)

    def unit(places: int) -> Tensor:
        return F.normalize(torch.randn(images, places, width, generator=generator, dtype=torch.float64), dim=-1)

    every = {"branch_embeds": unit(BRANCHES), "text_embeds": unit(SLOTS)}
    leaves = {**every, "logit_scale": torch.tensor(7.0), "logit_bias": torch.tensor(-2.0)}
    if gathered:
        leaves |= {name: embeds[2:6] for name, embeds in every.items()}
        leaves |= {"gathered_branches": every["branch_embeds"], "gathered_texts": every["text_embeds"]}
    return {name: leaf.clone().to(dtype).requires_grad_() for name, leaf in leaves.items()}


def captions(images: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(images, SLOTS, generator=generator) > 0.2
    mask[:3] = True
    return {"caption_mask": mask, "caption_ids": torch.randint(0, 4, (images, SLOTS), generator=generator)}


def loss(leaves: dict[str, Tensor], images: int = IMAGES, **options: Any) -> MultiToMultiLoss:
    given, about = dict(leaves), captions(images)
    if options.get("objective", "softmax") == "softmax":
        del given["logit_bias"]
    if "gathered_branches" in given:
        everyone = (given.pop("gathered_branches"), given.pop("gathered_texts"))
        options |= {"gathered": CaptionBatch(*everyone, **about), "offset": 2}
        about = {name: value[2:6] for name, value in about.items()}
    return loss_of(**given, **about, diversity_threshold=-0.5, **options)


def value_and_gradients(leaves: dict[str, Tensor], **options: Any) -> list[Tensor]:
    total = loss(leaves, **options).total
    return [total.detach(), *torch.autograd.grad(total, list(leaves.values()), allow_unused=True)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("objective", "matching", "duplicate_captions", "gathered"), CASES)
def test_the_block_does_not_matter(
    objective: str, matching: str, duplicate_captions: str, gathered: bool, dtype: torch.dtype
) -> None:
    options = {"objective": objective, "matching": matching, "duplicate_captions": duplicate_captions}
    leaves = rows(IMAGES, dtype, gathered=gathered)
    whole = value_and_gradients(leaves, **options)
    assert all(part is None or part.dtype == dtype for part in whole)
    for chunk_size in (1, 3, 100):
        streamed = value_and_gradients(leaves, **options, chunk_size=chunk_size)
        for name, one, other in zip(("total", *leaves), streamed, whole, strict=True):
            if one is None:
                assert other is None and (objective, name) == ("softmax", "logit_bias")
                continue
            torch.testing.assert_close(one, other, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize(("objective", "matching", "duplicate_captions", "gathered"), CASES)
def test_gradients_by_finite_differences(
    objective: str, matching: str, duplicate_captions: str, gathered: bool
) -> None:
    leaves = rows(IMAGES, torch.float64, gathered=gathered, width=2)
    if objective == "softmax":
        leaves["logit_bias"].requires_grad_(False)
    options = {"objective": objective, "matching": matching, "duplicate_captions": duplicate_captions}

    def total(*values: Tensor) -> Tensor:
        return loss(dict(zip(leaves, values, strict=True)), **options, chunk_size=3).total

    assert torch.autograd.gradcheck(total, tuple(leaves.values()), fast_mode=True)


class Operations(TorchDispatchMode):
    """Notes which operations ran, and the most numbers that one of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        for part in result if isinstance(result, (tuple, list)) else [result]:
            self.largest = max(self.largest, part.numel() if isinstance(part, Tensor) else 0)
        return result


@pytest.mark.parametrize("matching", ["aligned", "free", "balanced"])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_the_logits_are_never_held(objective: str, matching: str) -> None:
    images, options = 160, {"objective": objective, "matching": matching, "duplicate_captions": "ignore"}
    leaves = rows(images, torch.float32, gathered=False)
    sizes = {}
    for chunk_size in (8, images):
        with Operations() as ran:
            loss(leaves, images, **options, chunk_size=chunk_size).total.backward()
        sizes[chunk_size] = ran.largest
    assert sizes[8] == images * SLOTS * WIDTH, "nothing is larger than the embeddings"
    assert sizes[images] > sizes[8]


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_the_default_chunk_bounds_memory(objective: str) -> None:
    """Of 4,200 images, whose logits are 17.6 million numbers, 64 MB at most are held at a time."""
    images, most = 4_200, 64 * 2**20 // 4
    given = rows(images, torch.float32, gathered=False, width=2)
    branches, texts = given["branch_embeds"][:, :1], given["text_embeds"][:, :1]
    bias = given["logit_bias"] if objective == "sigmoid" else None
    with Operations() as ran:
        loss_of(branches, texts, given["logit_scale"], logit_bias=bias, objective=objective)
    assert most // 2 < ran.largest <= most < images**2


@pytest.mark.parametrize("alone", [False, True])
def test_one_similarity_matrix_serves_both_directions(alone: bool) -> None:
    leaves = rows(IMAGES, torch.float32, gathered=False)
    options: dict[str, Any] = {"branch_of_slot": [0, 1, 2, 0]}
    if alone:  # one process gathers its own tensors
        everyone = CaptionBatch(leaves["branch_embeds"], leaves["text_embeds"], **captions(IMAGES))
        options["gathered"] = everyone
    with Operations() as ran:
        loss(leaves, **options)
    assert ran.names["addmm_"] == 2 * SLOTS, "one product for the queries' gradients, one for the candidates'"


def test_queries_are_this_ranks_own_rows_in_both_directions() -> None:
    leaves = rows(IMAGES, torch.float64, gathered=False)
    rest = (leaves[name].detach().clone() for name in ("branch_embeds", "text_embeds"))
    options: dict[str, Any] = {"branch_of_slot": [0, 1, 2, 0], "gathered": CaptionBatch(*rest, **captions(IMAGES))}
    loss(leaves, **options).contrastive.backward()
    assert leaves["branch_embeds"].grad.any() and leaves["text_embeds"].grad.any()


def test_it_is_differentiable_once() -> None:
    leaves = rows(IMAGES, torch.float64, gathered=False)
    total = loss(leaves).total
    first, again = (torch.autograd.grad(total, leaves["text_embeds"], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again), "backward leaves what it needs as it was"
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(total, leaves["text_embeds"], create_graph=True)


@pytest.mark.parametrize("frozen", ["branch_embeds", "text_embeds", "logit_scale"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    leaves = rows(IMAGES, torch.float64, gathered=False)
    del leaves["logit_bias"]
    loss(leaves | {"logit_bias": torch.tensor(0.0)}).total.backward()
    expected = {name: leaf.grad for name, leaf in leaves.items() if name != frozen}
    partly = {name: leaf.detach().requires_grad_(name != frozen) for name, leaf in leaves.items()}
    loss(partly | {"logit_bias": torch.tensor(0.0)}).total.backward()
    assert partly[frozen].grad is None
    for name, gradient in expected.items():
        torch.testing.assert_close(partly[name].grad, gradient)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_without_gradients_none_is_computed(objective: str) -> None:
    leaves = rows(IMAGES, torch.float64, gathered=False)
    with Operations() as ran:
        expected = loss(leaves, objective=objective)
    assert "addmm_" in ran.names and expected.total.requires_grad
    with torch.no_grad(), Operations() as ran:
        assert torch.equal(loss(leaves, objective=objective).total, expected.total)
    assert "addmm_" not in ran.names
    with Operations() as ran:
        assert not loss({k: v.detach() for k, v in leaves.items()}, objective=objective).total.requires_grad
    assert "addmm_" not in ran.names


@pytest.mark.parametrize("matching", ["aligned", "balanced"])
def test_autocast_does_not_touch_the_loss(matching: str) -> None:
    leaves = rows(IMAGES, torch.float32, gathered=False)
    expected = loss(leaves, matching=matching)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(leaves, matching=matching)
    assert torch.equal(found.total, expected.total) and found.diversity > 0
    inputs = [leaves[name] for name in NAMES]
    for one, other in zip(*(torch.autograd.grad(each.total, inputs) for each in (found, expected)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_and_summed_in_float32(dtype: torch.dtype) -> None:
    leaves = rows(64, dtype, gathered=False, width=16)
    leaves |= {"logit_scale": torch.tensor(20.0, requires_grad=True), "logit_bias": torch.tensor(0.0)}
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    found, expected = (loss(each, 64).contrastive for each in (leaves, exact))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    found.backward()
    expected.backward()
    for name in NAMES:
        assert leaves[name].grad.dtype == leaves[name].dtype
        torch.testing.assert_close(leaves[name].grad, exact[name].grad.to(leaves[name].dtype), rtol=1e-2, atol=1e-6)


class Waits(TorchDispatchMode):
    """Counts the operations whose size or value the processor has to wait for on an accelerator."""

    KINDS = ("nonzero", "unique", "item", "_local_scalar_dense", "masked_select", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in args if isinstance(each, (list, tuple))]
        is_masked = any(isinstance(one, Tensor) and one.dtype == torch.bool for each in given for one in each)
        name = function.overloadpacket.__name__
        self.count += name.startswith(self.KINDS) or (name.startswith("index") and is_masked)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("matching", ["aligned", "free", "balanced"])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_the_processor_does_not_wait_for_each_slot_and_branch(matching: str, objective: str) -> None:
    """On the CPU nothing waits, but the operations that would are the same; torch does not tell of `tolist`."""
    few, many = (count_waits(places, matching, objective) for places in (2, 9))
    assert few == many <= 4, "once for each of the two terms, and for balanced captions"


def count_waits(places: int, matching: str, objective: str) -> int:
    generator, lists, to_list = torch.Generator().manual_seed(0), [], Tensor.tolist
    branches, texts = (
        F.normalize(torch.randn(40, places, 8, generator=generator), dim=-1).requires_grad_() for _ in "ab"
    )
    about = {"caption_mask": torch.rand(40, places, generator=generator) > 0.2}
    about["caption_ids"] = torch.randint(9, (40, places), generator=generator)
    bias = {"logit_bias": torch.tensor(-2.0)} if objective == "sigmoid" else {}
    options = {"objective": objective, "matching": matching, "fused_weight": 1.0, "duplicate_captions": "ignore"}
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(Tensor, "tolist", lambda tensor: lists.append(1) or to_list(tensor))
        loss_of(branches, texts, torch.tensor(5.0), **about, **bias, **options).total.backward()
    return waits.count + len(lists)
