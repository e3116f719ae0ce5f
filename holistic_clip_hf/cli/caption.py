# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Caption images from several perspectives: the details, the main object, the background, the style and so on.

Answers, and the failures to get one, are rows of JSON in the folder --output. Stopped or killed, the same command goes
on and asks nothing twice. Several captioners and files of prompts may share one folder.

A model on this machine:

  holistic-clip caption folder photos --model HuggingFaceTB/SmolVLM2-500M-Instruct --output captions

A model behind a server that speaks OpenAI's chat completions, many times faster:

  vllm serve Qwen/Qwen2.5-VL-7B-Instruct
  holistic-clip caption folder photos --server http://localhost:8000 --model Qwen/Qwen2.5-VL-7B-Instruct \\
      --output captions

On a cluster, each of n processes gets its own --shard, from 0/n on, and all get the same --output.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .sources import AnySource

if TYPE_CHECKING:
    from ..captioning.captioner import Backend, CaptioningReport


@dataclass(frozen=True)
class Local:
    """A model on this machine.

    Args:
        revision: Branch, tag or commit of the model on the Hub.
        batch_size: Number of images at a time.
    """

    revision: str | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class Server:
    """A model behind a server.

    Args:
        server: Address, such as http://localhost:8000.
        token_variable: Name of the environment variable that holds the token.
        concurrency: Number of images that are asked about at a time.
        timeout: Seconds to wait for an answer.
        attempts: Number of attempts to get an answer.
        image_format: Encoding of what is sent; png is exact and larger.
    """

    server: str | None = None
    token_variable: str | None = None
    concurrency: int = 16
    timeout: float = 300.0
    attempts: int = 6
    image_format: Literal["jpeg", "png"] = "jpeg"


@dataclass(frozen=True)
class Command:
    """Caption images from several perspectives.

    Args:
        source: Images to caption.
        model: Captioner, by its name on the Hub, its folder, or as the server calls it.
        output: Folder for caption rows.
        perspectives: Names of the perspectives to ask about. Default: all that have a prompt.
        perspectives_file: YAML file with prompts of your own, in the form of captioning/perspectives.yaml.
        shard: Part of the images that this process takes, as i/n from 0/n on.
        retry_failed: Ask again what failed in earlier runs.
        local: Options of a model on this machine.
        remote: Options of a model behind a server.
    """

    source: AnySource
    model: str
    output: Path
    perspectives: tuple[str, ...] = ()
    perspectives_file: Path | None = None
    shard: str = "0/1"
    retry_failed: bool = False
    local: Local = field(default_factory=Local)
    remote: Server = field(default_factory=Server)

    def __call__(self) -> None:
        """Ask about every image what was not asked yet, and print what came of it.

        Raises:
            ValueError: a perspective, shard or variable that does not exist.
            ServerError: the server answers nothing any more.
        """
        from ..captioning.captioner import caption_images
        from ..captioning.perspectives import asked, load_perspectives
        from ..captioning.store import CaptionStore, Shard

        perspectives = load_perspectives(self.perspectives_file, self.perspectives)
        source, shard = self.source.open(), Shard.parse(self.shard)
        CaptionStore(self.output).require_own()  # before minutes of loading a model
        backend = self._backend()
        if not self.perspectives:
            perspectives = asked(perspectives, backend.captioner)
        report = caption_images(
            source,
            perspectives,
            backend,
            self.output,
            shard=shard,
            retry_failed=self.retry_failed,
            progress=True,
        )
        show(report, self.output)

    def _backend(self) -> "Backend":
        remote = self.remote
        if remote.server is None:
            from ..captioning.local_backend import LocalBackend

            return LocalBackend(self.model, revision=self.local.revision, batch_size=self.local.batch_size)
        from ..captioning.remote_backend import Patience, RemoteBackend

        token = None
        if remote.token_variable is not None and not (token := os.environ.get(remote.token_variable)):
            raise ValueError(
                f"`--token-variable` is {remote.token_variable}, which is not set; expected a variable that holds the "
                "token. Set it."
            )
        patience = Patience(timeout=remote.timeout, attempts=remote.attempts)
        return RemoteBackend(
            remote.server,
            self.model,
            token=token,
            concurrency=remote.concurrency,
            patience=patience,
            image_format=remote.image_format,
        )


def show(report: "CaptioningReport", folder: Path) -> None:
    """Print what a run did, and what can be done about failures."""
    from ..captioning.store import FAILED

    print(f"{report.images:,} images; {report.kept:,} captions were kept, {report.statuses.total():,} were added:")
    for status, count in report.statuses.most_common():
        print(f"{status:12} {count:10,}")
    if report.skipped:
        print(f"{len(report.skipped):,} entries are left out; skipped.*.json in {folder} says why.")
    if report.statuses[FAILED]:
        print("To ask again what failed, add --retry-failed.")
    print(folder)
