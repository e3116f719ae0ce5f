# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Caption images from several perspectives: the details, the main object, the background, the style and so on.

Answers, and the failures to get one, are rows of JSON in the folder --output. Stopped or killed, the same command goes
on; it asks again at most what the last minute answered. Several captioners and files of prompts may share one folder.

A model on this machine:

  holistic-clip caption folder photos --model llava-hf/llava-interleave-qwen-0.5b-hf --output captions

A model behind a server that speaks OpenAI's chat completions, many times faster:

  vllm serve Qwen/Qwen2.5-VL-7B-Instruct
  holistic-clip caption folder photos --server http://localhost:8000 --model Qwen/Qwen2.5-VL-7B-Instruct \\
      --output captions

On a cluster, each of n processes gets its own --shard, from 0/n on, and all get the same --output.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .sources import AnySource

if TYPE_CHECKING:
    from ..captioning.captioner import Backend, CaptioningReport


class NothingAnsweredError(Exception):
    """Reason why a run has no caption to show."""


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
        max_side: Pixels of the longer side of what is sent; larger images are made smaller.
        max_bytes: Bytes of an encoded image that is sent; larger ones are made smaller.
        extra_body: JSON object with members of every request beside ours; null takes one of ours out.
    """

    server: str | None = None
    token_variable: str | None = None
    concurrency: int = 16
    timeout: float = 300.0
    attempts: int = 6
    image_format: Literal["jpeg", "png"] = "jpeg"
    max_side: int = 2048
    max_bytes: int = 4_000_000
    extra_body: str | None = None


@dataclass(frozen=True)
class Command:
    """Caption images from several perspectives.

    Args:
        source: Images to caption.
        model: Captioner, by its name on the Hub, its folder, or as the server calls it.
        output: Folder for caption rows; those of earlier runs stay.
        perspectives: Names of the perspectives to ask about. Default: all that have a prompt.
        perspectives_file: YAML file with prompts of your own, in the form of captioning/perspectives.yaml.
        shard: Share of the images for this process, as i/n, counted from 0.
        retry_failed: Ask again what failed in earlier runs.
        chat_template_kwargs: JSON object with variables of the chat template; {"enable_thinking": false} switches
            thinking off.
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
    chat_template_kwargs: str | None = None
    local: Local = field(default_factory=Local)
    remote: Server = field(default_factory=Server)

    def __call__(self) -> None:
        """Ask about every image what was not asked yet, and print what came of it.

        Raises:
            ValueError: a perspective, shard or variable that does not exist, a source without images, or an option
                that nothing would heed.
            ServerError: the server answers nothing any more.
            NothingAnsweredError: everything that was asked failed, in this run and before.
        """
        from ..captioning.captioner import caption_images, require_askable, require_images
        from ..captioning.perspectives import asked, load_perspectives
        from ..captioning.store import CaptionStore
        from ..images.sources import require_apart_from
        from ..sharding import Shard

        perspectives = load_perspectives(self.perspectives_file, self.perspectives)
        require_askable(perspectives if self.perspectives else asked(perspectives))
        self._require_no_unused_options()
        source, shard = self.source.open(), Shard.parse(self.shard)
        require_apart_from(source, self.output)
        CaptionStore(self.output).require_own()  # before minutes of loading a model
        require_images(source)
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
        if report.has_failed:
            raise NothingAnsweredError(
                f"{self.model!r} answered nothing, and the most frequent reason is: {_most_frequent(report)} Mend "
                "that, and add --retry-failed."
            )

    def _require_no_unused_options(self) -> None:
        """Refuse options that would be taken for heeded."""
        reasons: list[tuple[Any, Any, str]] = []
        if self.remote.server is None:
            reasons.append((self.remote, Server(), "only a server heeds it. Add --server"))
        else:
            reasons.append((self.local, Local(), "a server does not heed it. Leave out --server"))
        for given, usual, why in reasons:
            for name, value in vars(given).items():
                if value != vars(usual)[name]:
                    raise ValueError(f"`{name}` is {value}; expected none, since {why}, or leave it out.")
        if self.local.revision is not None and Path(self.model).is_dir():
            raise ValueError(
                f"`revision` is {self.local.revision}; expected none, since {self.model} is a folder. Leave it out."
            )
        for name in ("caption", "perspective"):
            if value := vars(self.source).get(name):
                told = value if isinstance(value, str) else " ".join(value)
                raise ValueError(
                    f"`--{name}` is {told}; expected none, since captions that images have are not looked at. Leave "
                    "it out; --perspectives says what is asked."
                )

    def _backend(self) -> "Backend":
        template = read_object(self.chat_template_kwargs, "--chat-template-kwargs")
        if self.remote.server is not None:
            return self._server(self.remote.server, {"chat_template_kwargs": template} if template else {})
        from ..captioning.local_backend import LocalBackend

        return LocalBackend(
            self.model,
            revision=self.local.revision,
            batch_size=self.local.batch_size,
            chat_template_kwargs=template,
        )

    def _server(self, url: str, template: dict[str, Any]) -> "Backend":
        from ..captioning.remote_backend import Patience, RemoteBackend
        from ..captioning.sent_pictures import SentLimits

        remote, token = self.remote, None
        if remote.token_variable is not None and not (token := os.environ.get(remote.token_variable)):
            raise ValueError(
                f"`--token-variable` is {remote.token_variable}, which is not set; expected a variable that holds the "
                "token. Set it."
            )
        return RemoteBackend(
            url,
            self.model,
            token=token,
            concurrency=remote.concurrency,
            patience=Patience(timeout=remote.timeout, attempts=remote.attempts),
            image_format=remote.image_format,
            limits=SentLimits(remote.max_side, remote.max_bytes),
            extra_body={**template, **read_object(remote.extra_body, "--extra-body")},
        )


def read_object(text: str | None, option: str) -> dict[str, Any]:
    """Read an option that is a JSON object; without one, an empty one.

    Raises:
        ValueError: it is something else.
    """
    from ..storage import parse_json, shown

    try:
        value = parse_json(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(
            f"`{option}` is {shown(text)}; expected a JSON object, such as '{{\"enable_thinking\": false}}'. Correct "
            "it."
        )
    return value


def _most_frequent(report: "CaptioningReport") -> str:
    [((status, reason), _)] = report.reasons.most_common(1)
    return f"{status}, {reason.rstrip('.')}."


def show(report: "CaptioningReport", folder: Path) -> None:
    """Print what a run did, and what can be done about failures."""
    from ..captioning.store import FAILED, USABLE

    print(f"{report.images:,} images; {report.kept:,} captions were kept, {report.statuses.total():,} were added:")
    for status, count in report.statuses.most_common():
        print(f"{status:12} {count:10,}")
    if report.skipped:
        print(f"{len(report.skipped):,} entries are left out; skipped.*.json in {folder} says why.")
    if report.statuses and report.has_answers and not any(report.statuses[status] for status in USABLE):
        print(f"No caption was added. The most frequent reason: {_most_frequent(report)}")
        if any("thinking" in reason for _, reason in report.reasons):
            print("""Thinking is switched off by --chat-template-kwargs '{"enable_thinking": false}'.""")
    if report.statuses[FAILED]:
        print("To ask again what failed, add --retry-failed.")
    print(folder)
