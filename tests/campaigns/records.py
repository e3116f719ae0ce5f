"""Damaged records and facts of a checkpoint: the card and the next evaluation say so, and no record is lost."""

import json
import shutil
from pathlib import Path
from typing import Any

from _child import Place, command, run
from _frame import REFUSED, SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _nonsense import nonsense
from _verbs import make_checkpoints, make_corpus, make_photos


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Damage a file beside a checkpoint, then render its card, or add records to it."""
    model = place.out / "model"
    shutil.copytree(shared / "model", model)
    name = draw.choice(["results.json", "results.json", "card_facts.json", "config.json", "trainer_state.json"])
    data, told = nonsense((model / name).read_bytes(), draw)
    (model / name).write_bytes(data)
    verb = draw.choice(["card", "evaluate"]) if name == "results.json" else "card"
    words: list[Any] = ["card", model]
    if verb == "evaluate":
        at = ["--model", shared / "model", "--corpus", shared / "corpus", "--split", "train"]
        words = ["evaluate", *at, "--name", "another", "--output", model / "results.json"]
    before = surroundings(place)
    outcome = judge(
        run(command(*words), place, SECONDS),
        f"{verb}: {name}: {told}",
        wrong=lambda: changed(before, surroundings(place)) or lost_of(data, model / name),
    )
    if outcome.kind == REFUSED and (model / name).read_bytes() != data:
        return Outcome("lost", outcome.about, f"{name} was changed though it was refused")
    return outcome


def lost_of(before: bytes, path: Path) -> str:
    """Say which records of the file before are no longer in it."""
    if path.name != "results.json":
        return ""
    values = [row.get("value") for row in json.loads(before)]
    after = [row.get("value") for row in json.loads(path.read_bytes())]
    lost = [value for value in values if value not in after]
    return f"records with the values {lost[:5]} are gone" if lost else ""


def prepare(shared: Path) -> None:
    make_photos(shared)
    make_checkpoints(shared)
    make_corpus(shared)
    at = ["--model", shared / "model", "--corpus", shared / "corpus", "--split", "train"]
    command("evaluate", *at, "--tasks", "retrieval", "branches", "--output", shared / "model" / "results.json")()
    state = {"global_step": 5, "log_history": [{"step": 1, "loss": 1.0}, {"step": 5, "train_runtime": 3.0}]}
    (shared / "model" / "trainer_state.json").write_text(json.dumps(state))
    command("card", shared / "model")()  # writes card_facts.json


CAMPAIGN = Campaign(
    name="records",
    about="results.json, card_facts.json, config.json or trainer_state.json of a checkpoint with a field changed, "
    "removed or of another type, or no JSON at all; then card, or an evaluation that adds to it",
    tries=100,
    attempt=attempt,
    prepare=prepare,
)
