"""Damaged recipes: YAML that grows, that asks for objects of Python, that says things twice or of another type."""

import json
from pathlib import Path
from typing import Any

import yaml
from _child import Place, command, run
from _frame import SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _nonsense import change, spoil
from _verbs import RECIPE, make_corpus, make_photos

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)
NAMES = ("../up", "/tmp/absolute", "a/b", "..", ".hidden", "", " ", "a\nb", "x" * 300, "é", "-", "~", "a b")


# What may well be large, and then trains for long.
LONGER = ("training.max_steps", "training.num_train_epochs")


def whole(corpus: Path) -> str:
    steps = RECIPE.replace("CORPUS", str(corpus)).replace("WORKERS", "0")
    return steps.replace("max_steps: 5", "max_steps: 1, num_train_epochs: 1")


def evils(canary: Path) -> dict[str, str]:
    """Return YAML by what is wrong with it; WHOLE stands for a recipe."""
    touch = f"touch {canary}"
    tags = ["object/apply:os.system", "object/apply:subprocess.check_output", "object/new:os.system"]
    found = {tag: f"WHOLE\nextra: !!python/{tag} ['{touch}']" for tag in tags}
    found |= {
        "module": "WHOLE\nextra: !!python/module:antigravity",
        "name": "corpus: !!python/name:os.system",
        "tuple": "WHOLE\nheld_out: !!python/tuple [a, b]",
        "laughs": LAUGHS,
        "laughs in a recipe": f"WHOLE\nheld_out: {{{LAUGHS.replace(chr(10), ', ')}}}",
        "laughs as a slot": f"{LAUGHS}\nruns: {{holistic: {{perspectives: *a9, slots: *a9}}}}",
        "alias to itself": "WHOLE\nheld_out: &me {a: *me}",
        "deep": "WHOLE\nheld_out: " + "[" * 5_000,
        "deep and closed": "WHOLE\nheld_out: " + "[" * 900 + "]" * 900,
        "merge": "WHOLE\nextra: {<<: [1, 2]}",
        "merge of itself": "WHOLE\nheld_out: &m {<<: *m}",
        "twice": "WHOLE\ncorpus: other",
        "seed twice": "WHOLE\ntraining: {seed: 0, seed: 1}",
        "two documents": "WHOLE\n---\na: b",
        "tabs": "corpus:\n\t- a",
        "a list": "- a\n- b",
        "a number": "5",
        "a long word": "WHOLE\nextra: " + "x" * 3_000_000,
        "a long key": f"WHOLE\n? {'y' * 100_000}\n: 1",
        "odd key": "WHOLE\n? [a, b]\n: 1",
        "a date": "WHOLE\nheld_out: {split: 2020-01-01}",
        "sexagesimal": "WHOLE\nimage_size: 1:30",
        "not a number": "WHOLE\nimage_size: .nan",
        "binary": "WHOLE\nextra: !!binary aGVsbG8=",
        "unknown tag": "WHOLE\nextra: !evil {a: b}",
        "set": "WHOLE\nextra: !!set {a, b}",
    }
    return found


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Train a run of a recipe that is damaged, by a name that may be."""
    text, run_name = whole(shared / "corpus"), "holistic"
    kind = draw.choice(["value", "value", "evil", "name", "bytes"])
    if kind == "value":
        content, about = change(yaml.safe_load(text), draw)
        while about.startswith(LONGER):
            content, about = change(yaml.safe_load(text), draw)
        data = yaml.safe_dump(json.loads(json.dumps(content)), allow_unicode=True).encode(errors="replace")
    elif kind == "evil":
        about = draw.choice(sorted(all_evils := evils(place.canary)))
        data = all_evils[about].replace("WHOLE", text).encode()
    elif kind == "name":
        run_name = draw.choice(NAMES)
        content, about = yaml.safe_load(text), f"a run called {run_name[:40]!r}"
        content["runs"] = {run_name: content["runs"]["holistic"]}
        data = yaml.safe_dump(content).encode()
    else:
        data, about = spoil(text.encode(), draw)
    path = place.given / "recipe.yaml"
    path.write_bytes(data)
    before = surroundings(place)
    words: list[Any] = ["train", "--recipe", path, f"--run={run_name}", "--output-dir", place.out / "runs"]
    ended = run(command(*words), place, SECONDS)

    def wrong() -> str:
        whole_run = [*(place.out / "runs" / "recipe").glob("*/finished.json")]
        return changed(before, surroundings(place)) or ("" if whole_run else "there is no checkpoint")

    if len(ended.said) > 1_000_000:
        return Outcome("unclear", about, f"a message of {len(ended.said)} letters")
    return judge(ended, about, wrong=wrong)


def prepare(shared: Path) -> None:
    make_photos(shared)
    make_corpus(shared)


CAMPAIGN = Campaign(
    name="recipes",
    about="`train` of a recipe with YAML bombs, `!!python/object`, doubles, values of other types, numbers that are "
    "huge or not a number, and paths as names of runs",
    tries=70,
    attempt=attempt,
    prepare=prepare,
)
