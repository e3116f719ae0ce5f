"""The paper in miniature: `python -m training.paper`.

Each claim of the paper's tables is a difference between two methods, on small networks and emoji. Runs that are not in
the records of the studies are trained, captioners too. Then a page tells of each claim whether its sign was found.
Killed, the command goes on where it was; several that are started side by side share the runs.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from datasets import disable_progress_bars
from transformers import logging

from holistic_clip_hf.cli.main import end_in_a_sentence
from holistic_clip_hf.evaluation.ranking import DIRECTIONS
from holistic_clip_hf.evaluation.records import FUSED, Record, load_records, save_records
from holistic_clip_hf.field_types import require_types
from holistic_clip_hf.storage import field_names, read_yaml, require_keys, shown, write_text
from holistic_clip_hf.words import markdown_table
from training.downstream.clipcap import RATIO, ClipCapRecipe, load_clipcap_recipe, run_recipe
from training.downstream.runs import read_part
from training.seeds import records_file, with_seed
from training.study import Study, finish_runs, load_results, load_study, missing_runs, require_plan
from training.study_tables import PAGE, QUESTIONS, Estimate, difference, signed, trained_for

HOLDS, OPPOSITE, NOT_TOLD = "holds", "opposite", "not told apart"
VERDICTS = (HOLDS, OPPOSITE, NOT_TOLD)


@dataclass(frozen=True)
class Claim:
    """A claim that one method is better than another.

    Args:
        claim: Sentence.
        source: Table of the paper.
        paper: Difference that the paper has.
        method: Method of a study, or run of the captioners, that is said to be better.
        against: Method or run that it is held against.
        asked: Perspectives of the captions that ask or are written; of a study also `one caption`, the mean over them,
            and `caption_sets`, all captions of an image at once.
        by: Score of the method, by its name in the results. Default: the one that it was trained for.
        against_by: Score of the other. Default: likewise.
    """

    claim: str
    source: str
    paper: str
    method: str
    against: str
    asked: list[str]
    by: str | None = None
    against_by: str | None = None


@dataclass(frozen=True)
class Untested:
    """A claim that cannot be tested here, and why."""

    claim: str
    source: str
    why: str


@dataclass(frozen=True)
class Claims:
    """A file of claims.

    Args:
        path: File.
        studies: Studies whose methods are compared; replicates are paired across them.
        captioners: Recipe of the captioners.
        seeds: Seeds of the captioners.
        retrieval: Claims on methods of the studies.
        captioning: Claims on runs of the captioners.
        untested: Claims that are told without a number.
    """

    path: Path
    studies: list[Study]
    captioners: ClipCapRecipe
    seeds: list[int]
    retrieval: list[Claim]
    captioning: list[Claim]
    untested: list[Untested]

    def methods(self) -> set[str]:
        """Return the names of the methods that the claims on retrieval need."""
        return {name for claim in self.retrieval for name in (claim.method, claim.against)}


class Finding(NamedTuple):
    """A difference as it is shown, and whether it is as the claim says."""

    shown: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.shown}, {self.verdict}"


def load_claims(path: Path) -> Claims:
    """Read a file of claims, with its studies and the recipe of its captioners.

    Raises:
        ValueError: unknown or lacking keys, a method, run or perspective that does not exist, studies that cannot be
            paired.
    """
    keys = field_names(Claims) - {"path"}
    content = require_keys(str(path), read_yaml(path), keys, keys)
    kinds = {"retrieval": Claim, "captioning": Claim, "untested": Untested}
    require_types(str(path), content, {"studies": list[str], "captioners": str, "seeds": list[int]})
    require_types(str(path), content, dict.fromkeys(kinds, list[dict]))
    for key, kind in kinds.items():
        content[key] = [read_part(f"{path}, {key}", each, kind) for each in content[key]]
    content["studies"] = [load_study(Path(each)) for each in content["studies"]]
    content["captioners"] = load_clipcap_recipe(Path(content["captioners"]))
    claims = Claims(path=path, **content)
    _require_pairs(claims)
    methods = [name for study in claims.studies for name in study.methods]
    _require_names(path, claims.retrieval, methods, [*claims.studies[0].perspectives, *QUESTIONS])
    _require_names(path, claims.captioning, list(claims.captioners.runs), claims.captioners.perspectives)
    return claims


def _require_pairs(claims: Claims) -> None:
    first = claims.studies[0]
    for study in claims.studies[1:]:
        shared = min(len(first.held_out), len(study.held_out))
        if study.held_out[:shared] != first.held_out[:shared] or study.perspectives != first.perspectives:
            raise ValueError(
                f"{claims.path}: `studies` has {study.path}, which holds out or asks otherwise than "
                f"{first.path}; expected the same in the same order, since replicates are paired. Leave it out."
            )
        if twice := sorted(first.methods.keys() & study.methods.keys()):
            raise ValueError(
                f"{claims.path}: `studies` has {shown(twice[0])} in {first.path} and in {study.path}; expected "
                "each method in one. Rename it."
            )


def _require_names(path: Path, claims: Sequence[Claim], methods: Sequence[str], asked: Sequence[str]) -> None:
    for claim in claims:
        where = f"{path}, {shown(claim.claim)}"
        for key, values, valid in (
            ("method", [claim.method], methods),
            ("against", [claim.against], methods),
            ("asked", claim.asked, asked),
        ):
            if unknown := [value for value in values if value not in valid]:
                raise ValueError(
                    f"{where}: `{key}` is {shown(unknown[0])}; expected one of {', '.join(valid)}. Correct the claim."
                )


def records_path(claims: Claims, seed: int) -> Path:
    """Return the file of the captioners' records of a seed."""
    return records_file(claims.path.parent / claims.captioners.name, claims.captioners, seed)


def finish(claims: Claims, output_dir: Path) -> None:
    """Train and measure whatever the claims need and the records lack.

    Args:
        claims: Claims.
        output_dir: Folder of the checkpoints.

    Raises:
        ValueError: records of another plan, or no checkpoint for a captioner.
    """
    for study in claims.studies:
        if missing_runs(study, claims.methods()):
            finish_runs(study, output_dir / "studies" / study.path.stem, claims.methods())
    for seed in claims.seeds:
        if lacking := missing_captioners(claims, seed):
            for name in lacking:
                _require_checkpoint(claims.captioners, name)
            recipe = with_seed(claims.captioners, seed)
            save_records(records_path(claims, seed), run_recipe(recipe, output_dir / recipe.name))


def _require_checkpoint(recipe: ClipCapRecipe, run: str) -> None:
    checkpoint = recipe.runs[run].checkpoint
    if not Path(checkpoint).is_dir():
        raise ValueError(
            f"`checkpoint` of captioner {shown(run)} is {checkpoint}, which is not a folder; expected a trained "
            "model. Run: make quickstart"
        )


def missing_captioners(claims: Claims, seed: int) -> list[str]:
    """Return the captioners that the claims need and of which the records of a seed have none."""
    path = records_path(claims, seed)
    recorded = {record.model for record in load_records(path)} if path.is_file() else set()
    needed = {name for claim in claims.captioning for name in (claim.method, claim.against)}
    return sorted(needed - recorded)


def load_rows(claims: Claims) -> list[dict[str, Any]]:
    """Return the finished runs of all studies.

    Raises:
        ValueError: a run that the claims need is missing, or is of another plan.
    """
    rows = []
    for study in claims.studies:
        found = load_results(study.results)
        require_plan(study, found)
        if lacking := missing_runs(study, claims.methods()):
            name, replicate = lacking[0]
            raise ValueError(
                f"{study.results} lacks {len(lacking)} runs; expected replicate {replicate} of {shown(name)} among "
                "them. Run: python -m training.paper"
            )
        rows += found
    return rows


def find_difference(rows: Sequence[dict[str, Any]], claim: Claim, asked: str, direction: str) -> tuple[Finding, int]:
    """Return what was found of a claim, and the number of replicates.

    Args:
        rows: Finished runs.
        claim: Claim on two methods.
        asked: Perspective of the captions that ask.
        direction: Direction of retrieval.

    Raises:
        ValueError: no replicate has both methods with these scores.
    """
    by = claim.by or trained_for(rows, claim.method)
    found = difference(rows, claim.method, by, claim.against, direction, asked, against_by=claim.against_by)
    if not found.count:
        sides = f"{_side(claim.method, claim.by)} and {_side(claim.against, claim.against_by)}"
        raise ValueError(
            f"{shown(claim.claim)} has no replicate with {sides}, asked by {asked!r}; expected one. Correct the claim."
        )
    return Finding(signed(found), _verdict(found)), found.count


def _verdict(found: Estimate) -> str:
    if not found.excludes_zero:
        return NOT_TOLD
    return HOLDS if found.mean > 0 else OPPOSITE


def find_ratio(records: Sequence[Sequence[Record]], claim: Claim, asked: str) -> Finding:
    """Return the ratio of perplexities of two captioners: the geometric mean over seeds.

    Its interval is from the lowest to the highest end of the seeds' own, which are by bootstrap over images.

    Args:
        records: Records of each seed.
        claim: Claim on two captioners.
        asked: Perspective of the captions.

    Raises:
        ValueError: a seed has no such ratio.
    """
    found = [_ratio(of_seed, claim, asked) for of_seed in records]
    value = geometric_mean(each[0] for each in found)
    low, high = min(each[1] for each in found), max(each[2] for each in found)
    verdict = HOLDS if high < 1 else OPPOSITE if low > 1 else NOT_TOLD
    text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return Finding(text if verdict == NOT_TOLD else f"**{text}**", verdict)


def _ratio(records: Sequence[Record], claim: Claim, asked: str) -> tuple[float, float, float]:
    """Return a ratio and its interval; of two runs one is that against which records hold all others."""
    for record in records:
        pair = (record.model, record.details.get("against"))
        if record.metric == RATIO and record.details["perspective"] == asked and record.confidence_interval:
            low, high = record.confidence_interval
            if pair == (claim.method, claim.against):
                return record.value, low, high
            if pair == (claim.against, claim.method):
                return 1 / record.value, 1 / high, 1 / low
    raise ValueError(
        f"{shown(claim.claim)} has no record of the {RATIO} of {claim.method} and {claim.against}, {asked}; expected "
        "one of each seed. Run: python -m training.paper"
    )


def retrieval_lines(claims: Claims, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[list[str], list[Finding]]]:
    """Yield the cells of each line of the table on retrieval, and what was found, by direction."""
    for claim in claims.retrieval:
        for asked in claim.asked:
            both = [find_difference(rows, claim, asked, direction) for direction in DIRECTIONS]
            sides = [_side(claim.method, claim.by), _side(claim.against, claim.against_by)]
            cells = [claim.claim, claim.source, claim.paper, " against ".join(sides), asked.replace("_", " ")]
            yield [*cells, str(both[0][1])], [finding for finding, _ in both]


def _side(method: str, by: str | None) -> str:
    return f"`{method}`" if by is None else f"`{method}`, {by.removeprefix(f'{FUSED}, ')}"


def captioning_lines(claims: Claims, records: Sequence[Sequence[Record]]) -> Iterator[tuple[list[str], list[Finding]]]:
    """Yield the cells of each line of the table on captioners, and what was found."""
    for claim in claims.captioning:
        for asked in claim.asked:
            compared = f"`{claim.method}` against `{claim.against}`"
            cells = [claim.claim, claim.source, claim.paper, compared, asked, str(len(records))]
            yield cells, [find_ratio(records, claim, asked)]


def paper_page(claims: Claims, rows: Sequence[dict[str, Any]], records: Sequence[Sequence[Record]]) -> str:
    """Return the page of the claims, as Markdown.

    Args:
        claims: Claims.
        rows: Finished runs of the studies.
        records: Records of the captioners, by seed.
    """
    of_methods, of_captioners = list(retrieval_lines(claims, rows)), list(captioning_lines(claims, records))
    head = ["claim", "table", "the paper", "compared here", "asked", "n"]
    directions = [direction.replace("_", " ") for direction in DIRECTIONS]
    parts = [
        "# The paper in miniature",
        "Rendered by `python -m training.paper` from the records of all that "
        f"[{claims.path.name}](../{claims.path.name}) names. What it means, and how far to trust it, is in "
        "[science.md](../../../docs/science.md).",
        f"A claim *{HOLDS}* if the 95 % interval lies on its side of no difference. If it lies on the other, the "
        f"*{OPPOSITE}* is found, and else the two are *{NOT_TOLD}*. {_summary(of_methods, of_captioners)}",
        "## Retrieval",
        "Differences of recall@5 in points on an artist that no model has seen, paired by artist and seed, with an "
        "interval by Student's t over these. *n* is their number. The paper's differences are of recall@1 in points, "
        "on COCO, text to image and image to text.",
        _table([*head, *directions], of_methods),
        "## Captioners",
        "Perplexity of test captions, divided by that of the other captioner. Below 1 is better. *n* is the number of "
        "seeds of the captioners, which read the same frozen towers of one seed. The interval spans those of all "
        "seeds, each by bootstrap over images.",
        _table([*head, "ratio"], of_captioners),
        "## Not tested",
        markdown_table(["claim", "table", "why"], [[each.claim, each.source, each.why] for each in claims.untested]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], lines: Sequence[tuple[list[str], list[Finding]]]) -> str:
    return markdown_table(head, [[*cells, *map(str, findings)] for cells, findings in lines])


def _summary(*tables: Sequence[tuple[list[str], list[Finding]]]) -> str:
    """Say how often each verdict was reached on what the paper claims."""
    found = [finding.verdict for lines in tables for cells, both in lines if cells[2] for finding in both]
    told = ", ".join(f"{found.count(verdict)} times *{verdict}*" for verdict in VERDICTS)
    return f"Of {len(found)} differences that the paper has: {told}. With so many, one in twenty stands out by chance."


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=Path, default=Path("training/studies/paper_claims.yaml"))
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="of checkpoints")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    disable_progress_bars()
    logging.disable_progress_bar()
    with end_in_a_sentence("python -m training.paper"):
        claims = load_claims(options.claims)
        finish(claims, options.output_dir)
        records = [load_records(records_path(claims, seed)) for seed in claims.seeds]
        page = claims.studies[-1].results.with_name(PAGE)
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, paper_page(claims, load_rows(claims), records))
    print(page)


if __name__ == "__main__":
    main()
