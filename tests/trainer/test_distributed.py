"""Two and three processes give the loss and the gradients of one process that has the whole batch.

The processes are real (gloo, CPU), forked by a script with a time limit; what they compute is compared here. Both
towers are plain matrices, so that "gradient of a shared weight" is what data parallel training would average.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import holistic_clip_hf
from holistic_clip_hf.trainer.distributed import (
    gather_objects,
    gather_rows,
    rank,
    rank_offset,
    sum_over_ranks,
    world_size,
)
from reference import loss_of

PACKAGE = Path(holistic_clip_hf.__file__).parent
IMAGES, BRANCHES, SLOTS, WIDTH = 6, 3, 4, 8
OPTIONS: dict[str, Any] = {
    "branch_of_slot": [2, -1, 0, 1],
    "fused_weight": 0.4,
    "diversity_weight": 0.7,
    "diversity_threshold": -0.2,
    "duplicate_captions": "positive",
    "matryoshka_dims": [3],
}

# The script forks its ranks, so that torch is imported once, and reads the modules without the package's `__init__`
# and with it transformers. Every rank saves a result of its own, or the text of the error it met.
SCRIPT = """
import multiprocessing
import sys
import types
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn import functional as F

torch.set_num_threads(1)
folder, package = sys.argv[1:]
for name, place in (("parts", package), ("parts.trainer", f"{package}/trainer")):
    sys.modules[name] = types.ModuleType(name)  # the package's files without their `__init__`
    sys.modules[name].__path__ = [place]
from parts.trainer.distributed import gather_rows, rank_offset, world_size
from parts.loss_holistic_clip import CaptionBatch, LossOptions, multi_to_multi_loss

given = torch.load(f"{folder}/given.pt")


def run(case, counts, rank):
    meeting = f"file://{folder}/meeting-{case}"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(counts), timeout=limit)
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    weights = {name: value.clone().requires_grad_() for name, value in given["weights"].items()}
    branches = F.normalize(given["images"][mine] @ weights["vision"], dim=-1)
    texts = F.normalize(given["texts"][mine] @ weights["text"], dim=-1)
    routing = (texts @ weights["router"].T).softmax(dim=-1)
    mask, ids = given["mask"][mine], given["ids"][mine]
    try:
        gathered = CaptionBatch(*map(gather_rows, (branches, texts, mask, ids, routing)))
        batch = dict(caption_mask=mask, caption_ids=ids, routing=routing, gathered=gathered)
        batch["offset"] = rank_offset(len(mask))
        scale = weights["logit_scale"].exp()
        options = dict(given["options"])
        batch["branch_of_slot"] = options.pop("branch_of_slot")
        loss = multi_to_multi_loss(branches, texts, scale, LossOptions(**options), **batch)
        loss.total.backward()
        result = {name: value.grad.clone() for name, value in weights.items()}
        result["loss"] = loss.total.detach().clone()
        for value in result.values():
            dist.all_reduce(value)
            value /= len(counts)
        result.update(offset=batch["offset"], world_size=world_size())
        result.update(rows=gathered.caption_ids, order=gathered.branch_embeds.detach())
    except ValueError as error:
        result = {"error": str(error)}
    torch.save(result, f"{folder}/{case}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


fork = multiprocessing.get_context("fork")
for case, counts in given["cases"].items():
    ranks = [fork.Process(target=run, args=(case, counts, rank)) for rank in range(len(counts))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
    if [rank.exitcode for rank in ranks] != [0] * len(ranks):
        for rank in ranks:
            rank.kill()
        sys.exit(f"{case}: {[rank.exitcode for rank in ranks]}")
"""
CASES = {"two": [3, 3], "three": [2, 2, 2], "uneven": [2, 4]}


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(IMAGES, SLOTS, generator=generator) > 0.3
    mask[0] = True
    mask[5] = False  # an image without any caption: it is still a candidate for nobody, and counts in the diversity
    ids = torch.randint(0, 3, (IMAGES, SLOTS), generator=generator)
    ids[[0, 4], 0] = 9  # the same caption on the first and the last rank
    mask[[0, 4], 0] = True
    weights = {"vision": normal(WIDTH, WIDTH), "text": normal(WIDTH, WIDTH), "router": normal(BRANCHES, WIDTH)}
    weights["logit_scale"] = torch.tensor(1.5, dtype=torch.float64)
    images, texts = normal(IMAGES, BRANCHES, WIDTH), normal(IMAGES, SLOTS, WIDTH)
    return {"images": images, "texts": texts, "mask": mask, "ids": ids, "weights": weights, "options": OPTIONS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each case, what its ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({**batch(), "cases": CASES}, folder / "given.pt")
    (folder / "ranks.py").write_text(SCRIPT)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "ranks.py"), str(folder), str(PACKAGE)]
    ran = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {
        case: [torch.load(folder / f"{case}-{rank}.pt") for rank in range(len(counts))]
        for case, counts in CASES.items()
    }


@pytest.mark.parametrize("case", ["two", "three"])
def test_ranks_equal_one_process(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    given = batch()
    weights = {name: value.requires_grad_() for name, value in given["weights"].items()}
    branches = F.normalize(given["images"] @ weights["vision"], dim=-1)
    texts = F.normalize(given["texts"] @ weights["text"], dim=-1)
    expected = loss_of(
        branches,
        texts,
        weights["logit_scale"].exp(),
        caption_mask=given["mask"],
        caption_ids=given["ids"],
        routing=(texts @ weights["router"].T).softmax(dim=-1),
        **OPTIONS,
    )
    assert expected.diversity > 0.01
    expected.total.backward()
    num_ranks, rows = len(CASES[case]), CASES[case][0]
    for number, found in enumerate(results[case]):
        assert "error" not in found
        assert (found["offset"], found["world_size"]) == (number * rows, num_ranks)
        assert torch.equal(found["rows"], given["ids"])
        torch.testing.assert_close(found["order"], branches.detach())
        torch.testing.assert_close(found["loss"], expected.total.detach(), rtol=1e-6, atol=1e-7)
        for name, weight in weights.items():
            assert weight.grad.abs().max() > 1e-3
            torch.testing.assert_close(
                found[name], weight.grad, rtol=1e-6, atol=1e-7, msg=lambda text, n=name: n + text
            )


def test_uneven_batches_are_refused_on_every_rank(results: dict[str, list[dict[str, Any]]]) -> None:
    assert len(results["uneven"]) == 2
    for found in results["uneven"]:
        assert "different numbers of images: [2, 4]" in found["error"]
        assert "dataloader_drop_last=True" in found["error"]


def test_one_process_needs_no_group() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert (world_size(), rank(), rank_offset(7)) == (1, 0, 0)
    assert gather_objects("alone") == ["alone"]
    total = sum_over_ranks(rows)
    assert torch.equal(total, rows) and total is not rows and not total.requires_grad
