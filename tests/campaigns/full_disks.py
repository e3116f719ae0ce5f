"""Disks that are full: a verb says so in a sentence, and ends well once there is space again.

The disk is a file system in memory of a size that is drawn, which takes the right to mount one.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from _child import Place
from _frame import FINISHED, REFUSED, SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _verbs import VERBS, draw_verb, make_world
from kills import difference, judge_result, undisturbed

ENOUGH = 2**28  # bytes
SPEAKS_OF_SPACE = re.compile(r"full|space|MB free", re.IGNORECASE)


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """Make `folder` a disk of this size for a while."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def make_space(folder: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", folder], check=True)


def cannot_mount() -> str:
    """Say why no disk can be mounted here, if none can."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", folder]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return tried.stderr.strip()


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Run a verb on a disk that is too small by some, then on the same with space."""
    name = draw_verb(draw)
    verb, is_output = VERBS[name], draw.random() < 0.8 and name != "publish"
    alone = undisturbed(name, shared, place)
    begins = sum(path.stat().st_size for path in (shared / "model").iterdir()) * 1.3 if name == "card" else 0
    size = 4096 * int(1 + (begins + draw.uniform(0, 1.1) * alone.written) // 4096)
    where = place.out if is_output else place.scratch
    about = f"{name}, {size} bytes for {'the output' if is_output else 'temporary files'}"
    with small_disk(where, size):
        verb.begin(shared, place.out)
        before = surroundings(place)
        first = verb.start(shared, place).wait(SECONDS)
        told = judge(first, about, wrong=lambda: difference(verb, place.out, first, alone.result))
        if told.kind == REFUSED and not SPEAKS_OF_SPACE.search(first.said):
            return Outcome("unclear", about, told.told, told.seconds)
        if told.kind not in (FINISHED, REFUSED):
            return told
        make_space(where)
        again = verb.start(shared, place).wait(SECONDS)
        last = judge_result(name, place, again, alone.result, about)
        if moved := changed(before, surroundings(place)):
            return replace(last, kind="lost", told=moved)
    return told if last.kind == FINISHED else last


CAMPAIGN = Campaign(
    name="full_disks",
    about="a disk that is full at a random point of a verb, for its output or for temporary files; then with space",
    tries=60,
    attempt=attempt,
    prepare=make_world,
    obstacle=cannot_mount,
)
