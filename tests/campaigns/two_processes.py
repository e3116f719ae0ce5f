"""Two processes on one output: each ends well or says that the other is at work, and nothing of either is lost."""

import time
from dataclasses import replace
from pathlib import Path

from _child import Child, Place
from _frame import FAULTS, FINISHED, REFUSED, SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _verbs import VERBS, draw_verb, make_world, on_corpus, records_of
from kills import judge_result, undisturbed

MANY = 4  # evaluations into one file of records
TOGETHER = "evaluate by four"


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Start a verb twice, a moment apart, then once more."""
    if draw.random() < 0.15:
        return attempt_together(shared, place, draw)
    name = draw_verb(draw)
    verb, alone = VERBS[name], undisturbed(name, shared, place)
    verb.begin(shared, place.out)
    before, pause = surroundings(place), draw.uniform(0, alone.seconds) * draw.choice([0, 1])
    first = verb.start(shared, place)
    time.sleep(pause)
    second = verb.start(shared, place)
    about, ended = f"{name}, {pause:.2f} s apart", [each.wait(SECONDS) for each in (first, second)]
    told = [judge(each, about) for each in ended]
    if bad := [each for each in told if each.kind in FAULTS]:
        return bad[0]
    if all(each.kind == REFUSED for each in told):
        return Outcome("lost", about, f"both were refused: {told[0].told} {told[1].told}")
    last = judge_result(name, place, verb.start(shared, place).wait(SECONDS), alone.result, about)
    if moved := changed(before, surroundings(place)):
        return replace(last, kind="lost", told=moved)
    return last if last.kind != FINISHED else replace(last, kind=max(each.kind for each in told))


def attempt_together(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Measure under several names at once into one file, which has to hold the records of all."""
    names = [f"name{number}" for number in range(MANY)]
    children = []
    for name in names:
        work = on_corpus("evaluate", "--split", "train", "--name", name, "--output", "OUT/results.json")
        children.append(Child(work(shared, place.out), place))
        time.sleep(draw.uniform(0, 0.1))
    told = [judge(each.wait(SECONDS), TOGETHER) for each in children]
    if bad := [each for each in told if each.kind in FAULTS]:
        return bad[0]
    found = str(sorted(records_of(place.out / "results.json")))
    missing = [name for name, each in zip(names, told, strict=True) if each.kind == FINISHED and name not in found]
    return Outcome("lost" if missing else FINISHED, TOGETHER, f"no record of {missing}" if missing else "")


CAMPAIGN = Campaign(
    name="two_processes",
    about="two processes of one verb on one output, up to a run's length apart; four evaluations into one file",
    tries=60,
    attempt=attempt,
    prepare=make_world,
)
