# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Records: measured numbers, each with all that is needed to measure it again, and the file that holds them."""

import contextlib
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..locks import hold_lock, lock_beside
from ..storage import field_names, parse_json, require_keys, write_json

Detail = str | int | float | bool
# Values of details that those who write records and those who read them must spell alike.
PER_PERSPECTIVE = "per_perspective"  # of `protocol`
FUSED = "fused"  # of `branch`
UNUSABLE = "n_unusable"  # of `counts`: images and captions that were left out
BY_NAME = "by name"  # of `branch`: the one that is called as the perspective of each text
PACKAGES = ("holistic-clip-hf", "torch", "transformers", "datasets")
CONSOLE_SCRIPT = "holistic-clip"  # as setup.cfg names it
HIDDEN = "..."  # in a published command, in place of what is of this machine
_SECRET_OPTION = re.compile(r"-{1,2}[\w-]*(?:token|api[_-]?key|secret|password)", re.IGNORECASE)
# As the Hub, OpenAI and GitHub write tokens; and the password in an address.
_SECRET = re.compile(r"\b(?:hf_|sk-|gh[a-z]_|github_pat_)[\w-]{8,200}|(?<=://)[^/@\s]{1,200}(?=@)")
GIT_TIMEOUT_SECONDS = 10  # a checkout on a stalled network drive must not hold up an evaluation
# A study that adds to results which are tracked does not change the code that it measures.
ALL_BUT_RESULTS = (":(top)", *(f":(top,exclude,glob)**/*{name}" for name in ("results.json", "results.jsonl")))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin that all numbers of one run share.

    Args:
        model: name of the checkpoint, the one its card uses.
        dataset, split: Data that was measured on.
        seed: Seed of everything random in the measurement.
        command: Command as typed, without paths of this machine, tokens and passwords.
        commit: Commit of the checkout that holds this package; `None` outside one.
        uncommitted_changes: True if tracked files, other than results, differed from `commit`; `None` outside a
            checkout.
        versions: Versions of the interpreter and the packages that decide the numbers.
        timestamp: UTC, ISO 8601, to the second.
    """

    model: str
    dataset: str
    split: str
    seed: int
    command: str
    commit: str | None
    uncommitted_changes: bool | None
    versions: Mapping[str, str]
    timestamp: str


@dataclass(frozen=True, kw_only=True)
class Record(Provenance):
    """One measured number.

    Args:
        metric: `"recall"`, `"median_rank"` ...
        value: a finite number; shares are fractions of one, not percent.
        task: `"retrieval"` ...
        details: Facts that tell this measurement from others of the same metric, such as perspective, direction,
            branch, k ...
        counts: sizes the value depends on: queries, candidates ...
        chance: Value that a model without knowledge is expected to get, on the same data.
        confidence_interval: low and high end, 95 %.

    Example:

    >>> provenance = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
    >>> record = Record(**vars(provenance), metric="recall", value=0.5, task="retrieval", details={"k": 5})
    >>> record.label
    'recall@5'
    """

    metric: str
    value: float
    task: str
    details: Mapping[str, Detail] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    chance: float | None = None
    confidence_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        texts = {name: vars(self)[name] for name in ("model", "dataset", "split", "command", "timestamp")}
        for name, text in {**texts, "metric": self.metric, "task": self.task}.items():
            if not isinstance(text, str) or not text:
                raise ValueError(f"`{name}` is {text!r}. A record needs a non-empty string there.")
        for name, detail in self.details.items():
            if not isinstance(detail, Detail):
                raise ValueError(f"Detail `{name}` is {detail!r}; expected a string, a number or a truth value.")
        numbers = {"value": [self.value], "chance": [] if self.chance is None else [self.chance]}
        numbers["confidence interval"] = list(self.confidence_interval or ())
        for name, found in numbers.items():
            if not all(_is_finite(number) for number in found):
                raise ValueError(f"The {name} of {self.label} is {found}. A record holds finite numbers only.")

    @property
    def label(self) -> str:
        """The metric's name as tables print it."""
        return f"{self.metric}@{self.details['k']}" if "k" in self.details else self.metric

    @property
    def key(self) -> tuple:
        """Key that is equal for two runs of the same measurement, whatever they found; orders records in a file."""
        # A detail may be a number in one record and a string in another: never compare the two kinds.
        details = tuple((name, isinstance(value, str), value) for name, value in sorted(self.details.items()))
        return (self.model, self.task, self.dataset, self.split, self.metric, details)


def records_of(records: Iterable[Record], model: str) -> list[Record]:
    """Return the records of one model, by its name."""
    return [record for record in records if record.model == model]


def describe(record: Record) -> str:
    """Say what a record measured."""
    details = [str(value).replace("_", " ") for name, value in sorted(record.details.items()) if name != "k"]
    return ", ".join([*details, record.label])


@dataclass(frozen=True)
class Recorder:
    """Maker of the records of one task, all with the origin of one run.

    Args:
        provenance: Origin of the records.
        task: Name of the task.
        num_unusable: Number of images and captions of the data set that were left out, as they cannot be used. Each
            record counts them, if there are any.

    >>> provenance = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
    >>> Recorder(provenance, "retrieval").record("recall", 0.5, {"k": 5}, {"n_queries": 8}).label
    'recall@5'
    """

    provenance: Provenance
    task: str
    num_unusable: int = 0

    def record(
        self,
        metric: str,
        value: float,
        details: Mapping[str, Detail],
        counts: Mapping[str, int],
        *,
        chance: float | None = None,
        confidence_interval: tuple[float, float] | None = None,
    ) -> Record:
        """Return one measured number as a record; the arguments are fields of `Record`."""
        return Record(
            **vars(self.provenance),
            metric=metric,
            value=value,
            task=self.task,
            details=details,
            counts={**counts, UNUSABLE: self.num_unusable} if self.num_unusable else counts,
            chance=chance,
            confidence_interval=confidence_interval,
        )


def capture_provenance(*, model: str, dataset: str, split: str, seed: int) -> Provenance:
    """Return the provenance of the running process; what cannot be known is `None` or left out."""
    commit = commit_of_checkout()
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *ALL_BUT_RESULTS) if commit else None
    return Provenance(
        model=model,
        dataset=dataset,
        split=split,
        seed=seed,
        command=command_as_typed(sys.orig_argv),
        commit=commit,
        uncommitted_changes=None if changes is None else bool(changes),
        versions=_versions(),
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def commit_of_checkout() -> str | None:
    """Return the commit of the checkout that holds this package; `None` outside one."""
    # An installed copy may lie inside someone else's checkout (a virtual environment); that commit is not ours.
    is_tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return _git("rev-parse", "HEAD") if is_tracked else None


def command_as_typed(arguments: Sequence[str]) -> str:
    """Read the command that started a process, as another machine can run it, from its `sys.orig_argv`.

    A console script is started by the interpreter through its absolute path, which is nobody else's; on `PATH` its
    name is enough. Paths and secrets are shortened, see `shareable_command`.
    """
    rest = list(arguments[1:])
    if rest and Path(rest[0]).stem == CONSOLE_SCRIPT:
        return shareable_command([CONSOLE_SCRIPT, *rest[1:]])
    return shareable_command(["python", *rest])


def shareable_command(words: Sequence[str]) -> str:
    """Write a command so that it may be published: without folders of this machine, tokens and passwords.

    An absolute path becomes relative to the working directory or, outside it, `.../` and its last part.

    >>> shareable_command(["evaluate", "--corpus", "coco=/data/of/ada/coco", "--token", "hf_abcdefghijkl"])
    'evaluate --corpus coco=.../coco --token ...'
    """
    told: list[str] = []
    for word in words:
        name, equals, value = word.rpartition("=")
        is_secret = _SECRET_OPTION.fullmatch(name if equals else "".join(told[-1:])) is not None
        told.append(f"{name}{equals}{HIDDEN if is_secret else _shareable(value)}")
    return shlex.join(told)


def _shareable(value: str) -> str:
    value = _SECRET.sub(HIDDEN, value)
    if not any(kind(value).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
        return value
    with contextlib.suppress(ValueError, OSError):
        return PurePosixPath(value).relative_to(Path.cwd().as_posix()).as_posix()
    kind = PurePosixPath if value.startswith("/") else PureWindowsPath
    return f"{HIDDEN}/{kind(value).name}".rstrip("/")


def save_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Merge records into the file at `path`: the same measurement replaces, others stay, the order is by key.

    The file is replaced in one step, so an interrupted write leaves the old one. Processes that save to one file at
    the same time wait for each other, and all records are kept.
    """
    path, new = Path(path), {}
    for record in records:
        if record.key in new:
            raise ValueError(
                f"Two of the records to save are the same measurement: {record.label}, {dict(record.details)}. Tell "
                "them apart in `details`."
            )
        new[record.key] = record
    with hold_lock(lock_beside(path), wait=math.inf, keep=False):
        merged = {record.key: record for record in (load_records(path) if path.exists() else [])} | new
        write_json(path, [asdict(merged[key]) for key in sorted(merged)])


def differing_unusable(records: Mapping[str, Iterable[Record]]) -> str:
    """Return how many images and captions each of several models left out, in words; nothing if equally many.

    Args:
        records: Records on one split of a data set by model.
    """
    counts = {model: max((each.counts.get(UNUSABLE, 0) for each in of), default=0) for model, of in records.items()}
    if len(set(counts.values())) < 2:
        return ""
    return ", ".join(f"{model} {count:,}" for model, count in counts.items())


def load_records(path: str | os.PathLike) -> list[Record]:
    """Return the records in a file written by `save_records`. Raises `ValueError` for anything else."""
    try:
        rows = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}). Expected a file that `holistic-clip evaluate` wrote."
        ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list. Expected a file that `holistic-clip evaluate` wrote.")
    return [_record_from_row(row, f"Record {number} of {path}") for number, row in enumerate(rows)]


def _record_from_row(row: Any, where: str) -> Record:
    expected = field_names(Record)
    row = require_keys(f"{where} is malformed", row, expected, expected)
    for name in ("details", "counts", "versions"):
        if not isinstance(row[name], dict):
            raise ValueError(f"{where} is malformed: `{name}` is {row[name]!r}. Expected an object.")
    interval = row["confidence_interval"]
    if interval is not None and (not isinstance(interval, list) or len(interval) != 2):
        raise ValueError(f"{where} is malformed: the interval is {interval!r}. Expected two numbers or null.")
    try:
        return Record(**{**row, "confidence_interval": None if interval is None else tuple(interval)})
    except ValueError as error:
        raise ValueError(f"{where} is malformed: {error}") from error


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
