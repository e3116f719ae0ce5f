"""Runs of `HolisticCLIPTrainer` in processes of their own: `python training_ranks.py FOLDER`, and what starts it.

Ranks are forked by a script, so that torch and transformers are imported once, and meet through gloo on loopback. The
folder holds a model, a processor and a corpus, and `jobs.json`; each rank of a job leaves `JOB-RANK.pt` there.
"""

import gc
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

LIMIT = 120  # seconds that a job may take
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_jobs(folder: Path, jobs: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Start the script; for each job, in their order, what its ranks left."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, **ENVIRONMENT, "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    ran = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return {name: [torch.load(path) for path in sorted(folder.glob(f"{name}-[0-9].pt"))] for name in jobs}


def stream_of(corpus: Any, num_shards: int) -> Any:
    """The corpus as a stream whose shards and rows come in another order in each pass."""
    return corpus.to_iterable_dataset(num_shards=num_shards).shuffle(seed=7, buffer_size=5)


def train(folder: Path, name: str, job: dict[str, Any], rank: int) -> None:
    """One rank of a job: train, and leave the weights, the logs and whatever the job asks for."""
    from datasets import load_from_disk
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from transformers import TrainerCallback

    from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
    from holistic_clip_hf.stopping import Stopped
    from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
    from holistic_clip_hf.trainer.arguments import require_finite_loss
    from holistic_clip_hf.trainer.augmentation import Augmentation

    corpus = load_from_disk(str(folder / job.get("corpus", "corpus")))
    processor = HolisticCLIPProcessor.from_pretrained(folder / "processor")
    syncs: list[int] = []
    images: list[list[str]] = []

    class Watch(TrainerCallback):
        """Counts exchanges of gradients; stalls where the job is to be killed, as a slow step would."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if job["ranks"] > 1:
                trainer.model_wrapped.register_comm_hook(None, count_and_reduce)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            syncs.append(0)
            if state.global_step == job.get("stall"):
                time.sleep(LIMIT)
            if [rank, state.global_step] == job.get("signal"):
                os.kill(os.getpid(), signal.SIGTERM)

    def count_and_reduce(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        syncs[-1] += bucket.is_last()
        return allreduce_hook(None, bucket)

    options = {"warmup_steps": 0, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    args = HolisticCLIPTrainingArguments(str(folder / job.get("output", name)), **(options | job["arguments"]))

    class Noting(HolisticCLIPTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
            images.append(inputs["image_ids"])
            return super().training_step(model, inputs, *args)

    trainer = Noting(
        HolisticCLIPModel.from_pretrained(folder / "model", **job.get("config", {})),
        args,
        processing_class=processor,
        augmentation=Augmentation(size=32, scale=(0.3, 0.9)) if job.get("augmented") else None,
        train_dataset=stream_of(corpus, job["shards"]) if job.get("shards") else corpus,
        eval_dataset=corpus.select(range(9)),
    )
    trainer.add_callback(Watch())
    if job.get("eval_rows"):
        measured = {rows: trainer.evaluate(corpus.select(range(rows))) for rows in job["eval_rows"]}
        torch.save(measured, folder / f"{name}-{rank}.pt")
        return
    try:
        trainer.train(resume_from_checkpoint=job.get("resume"))
    except Stopped as stopped:
        torch.save({"stopped": str(stopped)}, folder / f"{name}-{rank}.pt")
        trainer.accelerator.end_training()
        return
    left = {"weights": trainer.model.state_dict(), "logs": trainer.state.log_history, "syncs": syncs, "images": images}
    if job.get("evaluate"):
        left["metrics"] = trainer.evaluate()
        try:
            require_finite_loss(torch.tensor([1.0, math.nan][rank]), [["a", "b"], ["c", "d"]][rank], step=3)
        except ValueError as error:
            left["error"] = str(error)
    torch.save(left, folder / f"{name}-{rank}.pt")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def rank_of_job(folder: Path, name: str, job: dict[str, Any], rank: int, port: int) -> None:
    if job["ranks"] > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"]}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in (place | meeting).items()})
    train(folder, name, job, rank)


def is_saved(folder: Path, num_ranks: int) -> bool:
    """Whether there is a checkpoint, and all ranks have written their part of it."""
    states = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return any(len(list(path.glob("rng_state*.pth"))) == num_ranks for path in states)


def run_job(folder: Path, name: str, job: dict[str, Any]) -> None:
    """Fork the ranks; those of a job that stalls are killed as soon as there is a checkpoint."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_of_job, args=(folder, name, job, rank, port)) for rank in range(job["ranks"])]
    for rank in ranks:
        rank.start()
    deadline, expected = time.monotonic() + LIMIT, 0
    if "stall" in job:
        expected = -signal.SIGKILL
        while time.monotonic() < deadline and not is_saved(folder / job["output"], len(ranks)):
            time.sleep(0.02)
        for rank in ranks:
            rank.kill()
    for rank in ranks:
        rank.join(max(0.1, deadline - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    if codes != [expected] * len(ranks):
        sys.exit(f"{name}: {codes}")


def main() -> None:
    torch.set_num_threads(1)
    import holistic_clip_hf.trainer  # noqa: F401  once, before the forks

    gc.freeze()  # or each fork would copy the memory of all modules to look for garbage in it
    folder = Path(sys.argv[1])
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        run_job(folder, name, job)


if __name__ == "__main__":
    main()
