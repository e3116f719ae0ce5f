"""Drawn configurations, valid and contradictory: the same numbers again from the disk, or one refusal at the door."""

from pathlib import Path
from typing import Any

from _child import Place, run, sentence
from _frame import SECONDS, Campaign, Draw, Outcome, judge


def drawn(draw: Draw) -> tuple[dict[str, Any], str]:
    """Draw the fields of a configuration; into every other one, one or two contradictions are put."""
    from model.test_random_configurations import CONTRADICTIONS, fitting

    fields, count = fitting(draw), draw.choice([0, 0, 1, 2])
    for _ in range(count):
        draw.choice(CONTRADICTIONS)(fields, draw)
    return fields, f"{count} contradictions"


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Make a model of a drawn configuration, compute with it, save it and load it again."""
    fields, about = drawn(draw)
    made: list[Any] = []

    def refuse_or_make() -> None:
        import torch

        from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel

        torch.manual_seed(0)
        made.append(HolisticCLIPModel(HolisticCLIPConfig(**fields)).eval())

    def work() -> None:
        sentence(refuse_or_make)()
        compare_with_saved(made[0], place.out)  # what is refused later than at construction is a traceback

    return judge(run(work, place, SECONDS), f"{about}: {fields}" if len(str(fields)) < 2_000 else about)


def compare_with_saved(model: Any, folder: Path) -> None:
    """Compute before and after saving.

    Raises:
        AssertionError: the numbers differ, or are not finite.
    """
    import torch

    from holistic_clip_hf import HolisticCLIPModel
    from model.test_random_configurations import numbers

    before = numbers(model)
    model.save_pretrained(folder)
    after = numbers(HolisticCLIPModel.from_pretrained(folder).eval())
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)  # convolutions differ by where memory lies
        if not first.isfinite().all():
            raise AssertionError("numbers are not finite")


CAMPAIGN = Campaign(
    name="configurations",
    about="a configuration drawn at random, every other one with contradictions: forward, save and reload to the same "
    "numbers, or one sentence at construction",
    tries=300,
    attempt=attempt,
)
