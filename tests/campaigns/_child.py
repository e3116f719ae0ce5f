"""A piece of work in a process of its own: bounded, watched, killed at will, and told of afterwards.

Processes are forked from one that has imported torch and transformers, so that a try takes a second and not ten. The
process that forks computes nothing itself: threads of a computation do not survive a fork.
"""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

MEBIBYTE = 2**20
MOST_MIB = 2_000  # that a try may take beyond the idle program
MOST_ADDRESSES = 24 * 2**30  # address space beyond the idle program: a wall for what runs away
UNCAUGHT = 70  # exit code of what ended in an exception that nobody expected
PROCESS_EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
HARMLESS_PROGRAMS = (
    "git",
    "uname",
    "ldconfig",
    "gcc",
    "lscpu",
    "fc-list",
)  # that libraries and records ask about this machine
OPENERS = {"os", "posix", "subprocess", "nt", "runpy", "importlib"}  # modules by which a pickle runs what it likes


@dataclass(frozen=True)
class Place:
    """Folders of a try: `given` is read, `out` is written, and whatever else changes is a fault."""

    folder: Path

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def beside(self) -> Path:
        return self.folder / "beside"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def canary(self) -> Path:
        """File that appears where code of a try's input runs."""
        return self.folder / "canary"

    def make(self) -> "Place":
        for folder in (self.given, self.out, self.beside, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        (self.beside / "letter.txt").write_text("Somebody else's.\n")
        (self.beside / "linked").symlink_to("letter.txt")
        return self


class Ended(NamedTuple):
    """How a process ended.

    Args:
        code: Exit code; negative for a signal, None where the time ran out.
        said: Standard error.
        printed: Standard output.
        seconds: Seconds that it took.
        mebibytes: Peak of its memory beyond the idle program.
        foreign: What it started, connected to or compiled that it should not have.
    """

    code: int | None
    said: str
    printed: str
    seconds: float
    mebibytes: int
    foreign: tuple[str, ...] = ()


class Child:
    """A forked process that does `work`, then exits with the code that the command line would."""

    def __init__(
        self, work: Callable[[], Any], place: Place, *, programs: Collection[str] = (), environment: Any = None
    ) -> None:
        self.place, self.started = place, time.monotonic()
        self.log = Path(tempfile.mkdtemp(prefix="log-", dir=place.folder))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(environment or {})
            _run(work, place, self.log, {*HARMLESS_PROGRAMS, *programs})
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)

    def kill(self, *, alone: bool = False) -> None:
        """Send SIGKILL, to all that it started too unless `alone`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL) if alone else os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> Ended:
        """Wait for its end, or end it when the time is over."""
        deadline, code, usage = time.monotonic() + seconds, None, None
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > deadline:
                self.kill()
                _, _, usage = os.wait4(self.pid, 0)
                break
            time.sleep(0.005)
        self.kill()  # workers that it left behind
        mebibytes = max(0, usage.ru_maxrss - _idle_kibibytes()) // 1024
        foreign = tuple(_text(self.log / "foreign").splitlines())
        if self.place.canary.exists():
            foreign = (*foreign, "the canary was written")
        said, printed = (_text(self.log / name) for name in ("stderr", "stdout"))
        return Ended(code, said, printed, time.monotonic() - self.started, mebibytes, foreign)


def run(work: Callable[[], Any], place: Place, seconds: float, **options: Any) -> Ended:
    """Do `work` in a process of its own; `options` as `Child` has them."""
    return Child(work, place, **options).wait(seconds)


def command(*words: str | Path) -> Callable[[], None]:
    """Return what runs the command `holistic-clip` with these words."""
    from holistic_clip_hf.cli.main import main

    return lambda: main([str(word) for word in words])


def sentence(work: Callable[[], Any]) -> Callable[[], None]:
    """Return `work` as the command runs it: a refusal is a sentence, anything else a traceback."""
    from holistic_clip_hf.cli.main import end_in_a_sentence

    def ended() -> None:
        with end_in_a_sentence("holistic-clip"):
            work()

    return ended


def _text(path: Path) -> str:
    """Read what a process wrote, which may have been killed before it wrote anything."""
    return path.read_text(errors="replace") if path.exists() else ""


def _idle_kibibytes() -> int:
    """Return what of this process's memory a fork inherits: all but the pages of files."""
    with open("/proc/self/statm") as file:
        _, resident, of_files, *_ = map(int, file.read().split())
    return (resident - of_files) * resource.getpagesize() // 1024


def _run(work: Callable[[], Any], place: Place, log: Path, programs: Collection[str]) -> NoReturn:
    code = UNCAUGHT
    try:
        os.setpgid(0, 0)
        _redirect(log)
        _limit()
        os.chdir(place.given)
        os.environ["TMPDIR"], tempfile.tempdir = str(place.scratch), None
        _watch(log / "foreign", place, programs)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))


def _limit() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_ADDRESSES, now + MOST_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(log: Path, place: Place, programs: Collection[str]) -> None:
    """Write down each program started, each address asked for and each piece of code that lies in the try's folder."""
    file, folder = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), str(place.folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        told = ""
        if event in PROCESS_EVENTS:
            program = arguments[0] if event != "subprocess.Popen" else arguments[0] or arguments[1][0]
            told = "" if Path(os.fsdecode(program)).name in programs else f"{event} {os.fsdecode(program)}"
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            host = arguments[1][0]
            told = "" if host in ("127.0.0.1", "::1", "localhost") else f"{event} {host}"
        elif event == "compile" and str(arguments[1]).startswith(folder):
            told = f"{event} {arguments[1]}"
        elif event == "pickle.find_class" and arguments[0].partition(".")[0] in OPENERS:
            told = f"{event} {arguments[0]}.{arguments[1]}"
        if told:
            os.write(file, f"{told}\n".encode(errors="replace"))

    sys.addaudithook(hook)
