"""Command lines with a mistake: one sentence before any work, and nothing written."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from _child import Place, command, run
from _frame import FINISHED, SECONDS, Campaign, Draw, Outcome, changed, judge, snapshot, surroundings
from _verbs import COLUMNS, list_words, make_index, make_world

WORDS = ("", " ", "-", "--", "0", "-1", "1e400", "nan", "inf", "one", "é", "'", '"; x', "$HOME", "\n", "*", "None")


def commands(shared: Path, place: Place) -> list[list[str]]:
    """Return command lines without a mistake, one for each verb."""
    model, corpus, photos, out = shared / "model", shared / "corpus", shared / "photos", place.out
    lines: list[list[Any]] = [
        ["caption", "folder", photos, "--model", shared / "captioner", "--output", out / "rows", "--batch-size", "2"],
        ["corpus", *list_words(shared), "--output", out / "corpus", "--validation", "0.1", "--workers", "1"],
        ["train", "--recipe", shared / "workers0.yaml", "--run", "holistic", "--output-dir", out / "runs"],
        ["finetune", photos, "--captions", shared / "captions.csv", *COLUMNS, "--base", shared / "clip"],
        ["evaluate", "--model", model, "--corpus", corpus, "--output", out / "results.json", "--batch-size", "8"],
        ["fit", "--model", model, "--corpus", corpus, "--fusion", "weighted", "--output", out / "f"],
        ["search", "index", photos, "--model", model, "--index", out / "index", "--batch-size", "8"],
        ["search", "find", "short: a dog^0.5; not colour: red", "--index", shared / "index", "-k", "3"],
        ["search", "check", "--index", shared / "index"],
        ["card", out],
        ["publish", model, "me/mine", "--license", "mit", "--dry-run"],
        ["publish", corpus, "me/mine", "--dry-run"],
    ]
    lines[3] += ["--output", out / "mine", "--epochs", "1", "--batch-size", "4"]
    lines[4] += ["--seed", "1", "--split", "train", "--tasks", "retrieval"]
    return [[str(word) for word in line] for line in lines]


def mistaken(line: list[str], shared: Path, place: Place, draw: Draw) -> list[str]:
    """Return the command line with one mistake."""
    kind = draw.choice(["drop", "typo", "value", "path", "twice", "swap", "word", "unknown"])
    at = draw.randrange(len(line))
    options = [number for number, word in enumerate(line) if word.startswith("--")] or [at]
    if kind == "drop":
        return line[:at] + line[at + 1 :]
    if kind == "typo":
        number = draw.choice([0, *options])
        letters = list(line[number])
        first = draw.randrange(len(letters) - 1)
        letters[first], letters[first + 1] = letters[first + 1], letters[first]
        return [*line[:number], "".join(letters), *line[number + 1 :]]
    if kind == "value":
        return [*line[:at], draw.choice(WORDS), *line[at + 1 :]]
    if kind == "path":
        names = [shared / "photos", shared / "captions.csv", shared / "model" / "config.json", shared / "corpus"]
        names += [
            shared / "index",
            place.beside,
            place.folder / "nowhere",
            Path("/dev/null"),
            shared,
            place.beside / "linked",
        ]
        number = draw.choice([n for n, word in enumerate(line) if "/" in word] or [at])
        return [*line[:number], str(draw.choice(names)), *line[number + 1 :]]
    if kind == "twice":
        number = draw.choice(options)
        return [*line, *line[number : number + 2]]
    if kind == "swap":
        other = draw.randrange(len(line))
        line[at], line[other] = line[other], line[at]
        return line
    return [
        *line,
        draw.choice(WORDS) if kind == "word" else draw.choice(["--verbose", "--ouput", "-x", "--no-such=1"]),
    ]


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Run a command line with one mistake in it."""
    line = mistaken(draw.choice(commands(shared, place)), shared, place, draw)
    about = re.sub(r"/\S*/(?=\S)", "", " ".join(map(repr, line)))[:400]
    before, everything = surroundings(place), snapshot(shared)
    outcome = judge(run(command(*line), place, SECONDS, programs=["python"]), about)
    after = surroundings(place)
    if outcome.kind == FINISHED:  # a name that is odd, such as `*`, is a folder here, and not a mistake
        before, after = (
            {name: found[name] for name in found if not name.startswith("given/")} for found in (before, after)
        )
    moved = changed(before, after) or changed(everything, snapshot(shared))
    return replace(outcome, kind="lost", told=f"{moved} {outcome.told}") if moved else outcome


def prepare(shared: Path) -> None:
    make_world(shared)
    make_index(shared)


CAMPAIGN = Campaign(
    name="mistakes",
    about="a command line with a mistake: a word dropped, misspelt, exchanged, given twice, of the wrong kind, or a "
    "path to something else",
    tries=100,
    attempt=attempt,
    prepare=prepare,
)
