"""Verbs killed with SIGKILL at random moments: started again, they end as if nobody had disturbed them."""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from _child import Ended, Place
from _frame import FINISHED, REFUSED, SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _verbs import VERBS, Verb, draw_verb, make_world

KILLS = 5  # of a try
LONGER = 1.2  # of the seconds of an undisturbed run, within which a kill falls


class Undisturbed(NamedTuple):
    """A run that nobody disturbed: its result, its seconds, and the bytes that it left."""

    result: Any
    seconds: float
    written: int


def undisturbed(verb: str, shared: Path, place: Place) -> Undisturbed:
    """Return what a run is if nobody disturbs it, which is kept for the next try.

    Raises:
        RuntimeError: it does not end well.
    """
    kept = shared.parent / "undisturbed" / f"{verb}.json"
    if not kept.is_file():
        alone = Place(place.folder / "alone").make()
        VERBS[verb].begin(shared, alone.out)
        ended = VERBS[verb].start(shared, alone).wait(SECONDS)
        if ended.code != 0:
            raise RuntimeError(f"{verb} alone: {ended.code} {ended.said[-2000:]}")
        kept.parent.mkdir(exist_ok=True)
        written = sum(path.stat().st_size for path in alone.out.rglob("*") if path.is_file())
        kept.write_text(json.dumps([VERBS[verb].result(alone.out, ended), ended.seconds, written]))
    return Undisturbed(*json.loads(kept.read_text()))


def comparable(result: Any) -> Any:
    """Return a result as it comes back from JSON."""
    return json.loads(json.dumps(result))


def difference(verb: Verb, out: Path, ended: Ended, expected: Any) -> str:
    """Say whether the result is another than that of the undisturbed run."""
    try:
        found = comparable(verb.result(out, ended))
    except Exception as error:
        return f"the result cannot be read: {type(error).__name__}: {error}"
    return next(differences(found, expected), "")


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Name each place in which two results differ."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        for key in found:
            yield from differences(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}.{number}")
    elif found != expected:
        yield f"{where}: got {str(found)[:300]}; expected {str(expected)[:300]}"


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Kill a verb up to five times on one output, then let it end."""
    name = draw_verb(draw)
    verb = VERBS[name]
    expected, seconds, _ = undisturbed(name, shared, place)
    verb.begin(shared, place.out)
    before, whole = surroundings(place), surroundings(Place(shared.parent))
    told, kills = Outcome(FINISHED, name), 0
    while kills < KILLS and told.kind == FINISHED:
        child, moment = verb.start(shared, place), draw.uniform(0, LONGER * seconds)
        time.sleep(moment)
        child.kill(alone=draw.random() < 0.2)
        ended = child.wait(SECONDS)
        if ended.code != -signal.SIGKILL:  # it was faster
            told = judge_result(name, place, ended, expected, told.about)
            break
        kills, told = kills + 1, replace(told, about=f"{told.about}, {moment:.2f} s")
    if told.kind == FINISHED:
        told = judge_result(name, place, verb.start(shared, place).wait(SECONDS), expected, told.about)
    if moved := changed(before, surroundings(place)) or changed(whole, surroundings(Place(shared.parent))):
        told = replace(told, kind="lost", told=moved)
    return replace(told, acts=kills)


def judge_result(name: str, place: Place, ended: Ended, expected: Any, about: str) -> Outcome:
    """Judge a run whose result must be that of an undisturbed one.

    A refusal is well where all was written before, and a verb says so.
    """
    problem = difference(VERBS[name], place.out, ended, expected) if ended.code is not None else ""
    told = judge(ended, about, wrong=lambda: problem)
    if told.kind == REFUSED:
        return replace(told, kind="lost" if problem else FINISHED)
    return told


CAMPAIGN = Campaign(
    name="kills",
    about="a verb killed with `kill -9` at random moments and started again: caption (sampled), corpus, index, train "
    "(with workers, on a stream, on two ranks), finetune, evaluate, fit, card, publish (dry)",
    tries=112,
    attempt=attempt,
    prepare=make_world,
    unit="kills",
)
