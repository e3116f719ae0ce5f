"""A verb of `holistic-clip` in shards, by datatrove: on this machine, or as an array of jobs of SLURM.

    python -m training.shards --tasks 16 --workers 4 --logs runs/shards/corpus -- \\
        corpus tar cc12m --caption txt=web --output corpora/cc12m
    python -m training.shards --tasks 32 --logs runs/shards/index --partition gpu --time 08:00:00 --gpus 1 -- \\
        search index corpora/cc12m --model runs/cc12m/holistic --index cc12m.index

Each task runs the verb with its own `--shard`; once all have ended, the verb runs without, which finishes the result.
Given again, the command runs the tasks that have not ended. A task whose process is killed is begun again, and goes on
where it was. docs/scale.md says what a million images cost.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from tyro.conf import OmitArgPrefixes, Positional

from holistic_clip_hf.cli.main import MISTAKE, end_in_a_sentence
from holistic_clip_hf.storage import require_count

ATTEMPTS, SECONDS_BETWEEN = 3, 5.0
FINISHED = ("corpus", "search", "evaluate")  # verbs whose result is finished by a run without a shard


class Verb(PipelineStep):
    """A run of the command, of one shard for each task; of all at once if there is one task.

    Args:
        command: Verb with its options.
    """

    type, name = "holistic-clip", "verb"

    def __init__(self, command: tuple[str, ...]) -> None:
        super().__init__()
        self.command = command

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Run the command until it has ended well.

        Raises:
            RuntimeError: it was refused, or ended otherwise as often as is tried.
        """
        yield from data or ()
        shard = ["--shard", f"{rank}/{world_size}"] if world_size > 1 else []  # cards tell the command without
        command = [sys.executable, "-m", "holistic_clip_hf", *self.command, *shard]
        for attempt in range(ATTEMPTS):
            code = subprocess.run(command).returncode
            if code == 0:
                return
            print(f"shard {rank}/{world_size} ended with code {code}", flush=True)
            if code == MISTAKE or attempt == ATTEMPTS - 1:  # the next attempt would make a mistake, too
                break
            time.sleep(SECONDS_BETWEEN * attempt)
        raise RuntimeError(f"`{' '.join(command[2:])}` ended with code {code}. Mend what it says, and run this again.")


@dataclass(frozen=True)
class Shards:
    """Options of a run.

    Args:
        command: Verb of holistic-clip with its options, behind `--`.
        tasks: Number of shards.
        logs: Folder for what datatrove keeps of each task, one for each command.
        workers: Number of shards at a time. Default: all.
        partition: Partition of a SLURM cluster. Default: this machine.
        time: Most time of a job there, as hours:minutes:seconds.
        cpus: Number of processor cores of a job there.
        gigabytes_per_cpu: Memory of a job there, for each core.
        gpus: Number of GPUs of a job there.
    """

    command: Positional[tuple[str, ...]]
    tasks: int
    logs: Path
    workers: int = -1
    partition: str | None = None
    time: str = "24:00:00"
    cpus: int = 1
    gigabytes_per_cpu: int = 4
    gpus: int = 0

    def __call__(self) -> None:
        """Run all shards that have not ended, and finish.

        Raises:
            ValueError: no command, one with a shard of its own, or no tasks.
            RuntimeError: a shard did not end well.
        """
        require_count("--tasks", self.tasks)
        if not self.command or "--shard" in self.command:
            raise ValueError(
                f"`command` is {' '.join(self.command)!r}; expected a verb of holistic-clip without --shard, behind "
                "`--`. Each task adds its own."
            )
        executor = self._executor("shards", tasks=self.tasks, workers=self.workers)
        if self.command[0] in FINISHED:
            # Always, since it is quick if nothing is missing, and images may have been added since.
            executor = self._executor("finish", tasks=1, workers=1, depends=executor, skip_completed=False)
        executor.run()

    def _executor(self, name: str, **options: Any) -> PipelineExecutor:
        common = {"pipeline": [Verb(self.command)], "logging_dir": str(self.logs / name), **options}
        if self.partition is None:
            return LocalPipelineExecutor(**common)
        return SlurmPipelineExecutor(
            **common,
            time=self.time,
            partition=self.partition,
            cpus_per_task=self.cpus,
            mem_per_cpu_gb=self.gigabytes_per_cpu,
            gpus_per_task=self.gpus,
            job_name=f"holistic-clip-{self.command[0]}",
        )


if __name__ == "__main__":
    with end_in_a_sentence("python -m training.shards"):
        tyro.cli(Shards, prog="python -m training.shards", description=__doc__, config=(OmitArgPrefixes,))()
