"""Frame of the campaigns: what a campaign is, how a try is judged, and the record of what all tries showed.

A try is drawn from the seed, the campaign's name and its number alone, so any of them can be repeated. What a try
showed is appended to a journal, by which an interrupted campaign goes on.
"""

import gc
import hashlib
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from _child import MOST_MIB, Ended, Place, run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
JOURNALS = ROOT / "build" / "campaigns"
# How a try may end. The first two are as it should be.
FINISHED, REFUSED = "finished", "refused"
FAULTS = ("lost", "hung", "traceback", "crashed", "foreign", "memory", "unclear")
SECONDS = 120.0  # that a try may take on a busy machine
MOST_FAULTS = 20  # that a record tells one by one
Draw = random.Random


@dataclass(frozen=True)
class Outcome:
    """What a try showed: how it ended, of how many acts (kills) it consisted, and what there is to tell."""

    kind: str
    about: str = ""
    told: str = ""
    seconds: float = 0.0
    mebibytes: int = 0
    acts: int = 1


@dataclass(frozen=True)
class Campaign:
    """A kind of harm, tried again and again.

    Args:
        name: Name on the command line, and of the record.
        about: Row of the table in SECURITY.md.
        tries: Number of tries of the whole campaign.
        attempt: Function of what is shared, the folder of the try and the draw, which tries once.
        prepare: Function that makes what all tries share, in a process of its own.
        unit: Name of what is counted where a try has several acts.
        obstacle: Function that says why the campaign cannot run here, if it cannot.
    """

    name: str
    about: str
    tries: int
    attempt: Callable[[Path, Place, Draw], Outcome]
    prepare: Callable[[Path], None] = field(default=lambda shared: None)
    unit: str = ""
    obstacle: Callable[[], str] = field(default=lambda: "")


def judge(
    ended: Ended,
    about: str,
    *,
    wrong: Callable[[], str] = lambda: "",
    codes: Collection[int] = (1, 2),
) -> Outcome:
    """Judge how a process ended.

    Args:
        ended: How it did.
        about: What was tried, for the record.
        wrong: Function that says what is wrong with the result of a process that ended well.
        codes: Exit codes of a refusal.
    """
    told = ended.said.strip().rpartition("\n")[2]
    kind = REFUSED
    if ended.foreign:
        kind, told = "foreign", "; ".join(ended.foreign)
    elif ended.code is None:
        kind, told = "hung", ended.said[-300:]
    elif "Traceback (most recent call last)" in ended.said:
        kind, told = "traceback", ended.said[-1500:]
    elif ended.code < 0:
        kind, told = "crashed", f"signal {-ended.code}; {told}"
    elif ended.mebibytes > MOST_MIB:
        kind, told = "memory", f"{ended.mebibytes} MiB; {told}"
    elif ended.code == 0:
        told = wrong()
        kind = "lost" if told else FINISHED
    elif ended.code not in codes or not told.startswith("holistic-clip"):
        kind, told = "traceback", f"exit code {ended.code} without a sentence: {ended.said[-500:]}"
    return Outcome(kind, about, told, ended.seconds, ended.mebibytes)


def snapshot(folder: Path, ignored: Collection[str] = ()) -> dict[str, str]:
    """Return a hash of each file below a folder by its path, of a link where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in ignored:
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[name] = "special"
    return found


def surroundings(place: Place) -> dict[str, str]:
    """Return the snapshot of what a try must leave alone."""
    names = {path.name for path in place.folder.iterdir()} - {"given", "beside"}
    return snapshot(place.folder, names)


def changed(before: dict[str, str], after: dict[str, str]) -> str:
    """Name what differs between two snapshots."""
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return f"changed: {', '.join(names[:5])}" if names else ""


class Runner:
    """The tries of one campaign, their journal and their record."""

    def __init__(self, campaign: Campaign, seed: int, records: Path, work: Path, journals: Path = JOURNALS) -> None:
        self.campaign, self.seed, self.records, self.work = campaign, seed, records, work
        self.journal = journals / f"{campaign.name}.jsonl"

    def repeat(self, number: int) -> Outcome:
        """Repeat one try, and return what it showed."""
        shared = self.work / self.campaign.name / "shared"
        self._prepare(shared)
        return self._try(shared, number)

    def outcomes(self, tries: int, *, seconds: float | None = None) -> list[Outcome]:
        """Return what each try showed, those of an interrupted run of the same commit and seed among them."""
        about = {"campaign": self.campaign.name, "seed": self.seed, "commit": commit()}
        found = self._read(about)
        if not found:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self.journal.write_text(json.dumps(about))
        shared, missing = self.work / self.campaign.name / "shared", [n for n in range(tries) if n not in found]
        if missing:
            self._prepare(shared)
        began = time.monotonic()
        for done, number in enumerate(missing, start=1):
            if seconds is not None and time.monotonic() - began > seconds:
                break
            found[number] = outcome = self._try(shared, number)
            with open(self.journal, "a") as file:
                file.write("\n" + json.dumps({"try": number, **asdict(outcome)}))  # after a torn line, too
            if outcome.kind in FAULTS:
                sys.stderr.write(f"\n{self.campaign.name} {number}: {outcome.kind}: {outcome.about}\n{outcome.told}\n")
            left = (time.monotonic() - began) / done * (len(missing) - done)
            sys.stderr.write(f"\r{self.campaign.name}: {done} of {len(missing)} tries, {left:.0f} s left  ")
        sys.stderr.write("\n")
        return [found[number] for number in sorted(found) if number < tries]

    def _read(self, about: dict[str, Any]) -> dict[int, Outcome]:
        if not self.journal.is_file():
            return {}
        lines = self.journal.read_text().splitlines()
        whole = [line for line in lines if line.endswith("}")]  # one may be torn
        if not whole or json.loads(whole[0]) != about:
            return {}
        rows = [json.loads(line) for line in whole[1:]]
        return {row.pop("try"): Outcome(**row) for row in rows}

    def _prepare(self, shared: Path) -> None:
        shutil.rmtree(shared.parent, ignore_errors=True)
        shared.mkdir(parents=True)
        place = Place(shared.parent / "preparing").make()
        ended = run(lambda: self.campaign.prepare(shared), place, 600.0, programs=["python"])
        if ended.code != 0:
            raise SystemExit(f"{self.campaign.name} could not be prepared: {ended.said[-3000:]}")

    def _try(self, shared: Path, number: int) -> Outcome:
        place = Place(shared.parent / f"try-{number}").make()
        draw = Draw(f"{self.seed}/{self.campaign.name}/{number}")
        try:
            return self.campaign.attempt(shared, place, draw)
        finally:
            shutil.rmtree(place.folder, ignore_errors=True)

    def record(self, outcomes: list[Outcome], note: str = "") -> dict[str, Any]:
        """Write the record, and return it."""
        kinds, tries = Counter(each.kind for each in outcomes), len(outcomes)
        told = [{"try": n, **asdict(each)} for n, each in enumerate(outcomes) if each.kind in FAULTS]
        count = f" --tries {tries}" if tries != self.campaign.tries else ""
        record = {
            "campaign": self.campaign.name,
            "about": self.campaign.about,
            "command": f"python tests/campaigns {self.campaign.name}{count} --seed {self.seed}",
            "commit": commit(),
            "seed": self.seed,
            "versions": {"python": platform.python_version(), **_versions()},
            "tries": tries,
            "tries_of_the_whole_campaign": self.campaign.tries,
            **({self.campaign.unit: sum(each.acts for each in outcomes)} if self.campaign.unit else {}),
            **{kind: kinds[kind] for kind in (FINISHED, REFUSED, *FAULTS)},
            "slowest_seconds": round(max((each.seconds for each in outcomes), default=0.0), 1),
            "most_mebibytes": max((each.mebibytes for each in outcomes), default=0),
            "note": note,
            "faults": told[:MOST_FAULTS],
        }
        self.records.mkdir(parents=True, exist_ok=True)
        path = self.records / f"{self.campaign.name}.json"
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return record


def commit() -> str:
    """Return the commit of the checkout, marked as dirty if files other than records differ from it."""
    told = _git("describe", "--always").stdout.strip()
    is_changed = _git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)tests/campaigns/results").returncode == 1
    return f"{told}-dirty" if is_changed else told or "unknown"


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "transformers", "datasets", "pillow")}


def make_work_folder() -> Path:
    """Return a new folder for tries, on the disk of temporary files."""
    return Path(tempfile.mkdtemp(prefix="campaigns-"))


def import_all() -> None:
    """Import what tries use, once, before the forks."""
    import datasets
    import PIL.Image
    import torch

    import holistic_clip_hf.cli.evaluate
    import holistic_clip_hf.cli.train
    import holistic_clip_hf.publishing.push
    import holistic_clip_hf.search
    import holistic_clip_hf.trainer.recipes
    import holistic_clip_hf.trainer.tiny
    import holistic_clip_hf.visualization  # noqa: F401

    torch.set_num_threads(1)
    PIL.Image.init()
    datasets.disable_progress_bars()
    gc.freeze()  # or each fork would copy the memory of all modules to look for garbage in it
