"""Fine-tune on photographs in folds, each photo held out once: `python -m training.photos_study`.

For each base, fold and way the command `holistic-clip finetune` chooses the settings, and a way changes some of them.
Every query of the photos held out is kept with its rank by each branch, so that folds can be pooled afterwards, by
`training.photos_tables`. Each finished run is a line of `results.jsonl` in the study's folder. A killed study goes on
where it was, and several that are started side by side share the runs.

Axes: N photos of a fold, H branches.
"""

import argparse
import csv
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock, Timeout

from holistic_clip_hf.cli.finetune import CORPUS, Command
from holistic_clip_hf.corpus.build import open_split
from holistic_clip_hf.evaluation.encoding import DualEncoder, load_checkpoint
from holistic_clip_hf.evaluation.ranking import DIRECTIONS, TEXT_TO_IMAGE
from holistic_clip_hf.evaluation.records import FUSED, PER_PERSPECTIVE, capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, embed_corpus, per_perspective, ranks_by_question
from holistic_clip_hf.images.likeness import find_groups, read_thumbnail
from holistic_clip_hf.storage import checksum, field_names, read_yaml, require_keys, stable_number, write_json
from holistic_clip_hf.trainer.finetuning import RUN
from holistic_clip_hf.trainer.recipes import Recipe, load_recipe, seconds_of_training, train_run
from training.study import RESULTS, append_result, load_results, merge_sections

STUDY = Path("training/studies/photos.yaml")
FOLDS = "folds.json"
ZERO_SHOT = "zero_shot"  # way of a base that is measured as it is
DEFAULT = "default"
CHANGED = ("model", "training", "augmentation")  # sections of a recipe that a way may change
WEIGHTS = "model.safetensors"
DIGITS = 5  # of an average precision


@dataclass(frozen=True)
class Way:
    """Changes of the settings that `finetune` chooses.

    Args:
        changes: Differences from the recipe that it writes; sections are merged.
        bases: Names of the bases that it is tried from. Default: all.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    bases: list[str] | None = None


@dataclass(frozen=True)
class PhotoStudy:
    """A study file.

    Args:
        path: File itself; records lie in the folder of its name.
        title: Heading of its page.
        photos: Folder of photos with `captions.csv`.
        captions: Perspectives by the columns of that list.
        folds: Number of folds.
        validation: Share of all photos that chooses the best epoch.
        bases: Folders of the checkpoints to start from, by name.
        ways: Changes of the settings, by name; `default` has none.
    """

    path: Path
    title: str
    photos: str
    captions: dict[str, str]
    folds: int
    validation: float
    bases: dict[str, str]
    ways: dict[str, Way]

    @property
    def results(self) -> Path:
        return self.path.with_suffix("") / RESULTS

    def runs(self) -> list[tuple[str, str, int]]:
        """Return way, base and fold of each run: bases as they are first, then way by way."""
        bases = {ZERO_SHOT: list(self.bases)}
        bases |= {name: way.bases or list(self.bases) for name, way in self.ways.items()}
        return [(way, base, fold) for way, names in bases.items() for base in names for fold in range(self.folds)]


@dataclass(frozen=True)
class Folds:
    """Folds of photos.

    Args:
        photos: Names of the photos, in order; records call them by their numbers in it.
        fold: Fold that holds out each photo.
        group: Number of the first photo that each is a near-duplicate of, or its own.
    """

    photos: Sequence[str]
    fold: Sequence[int]
    group: Sequence[int]

    def splits(self, fold: int, validation: float) -> list[str]:
        """Return the split of each photo when a fold is held out.

        Args:
            fold: Number of the fold.
            validation: Share of all photos that validates.
        """
        rest = sorted({group for group, number in zip(self.group, self.fold, strict=True) if number != fold})
        rest.sort(key=lambda group: stable_number(f"validation {fold} {self.photos[group]}"))
        sizes = np.bincount(self.group, minlength=len(self.photos))
        chosen = [
            group
            for group, before in zip(rest, _running(sizes[rest]), strict=True)
            if before < validation * len(self.photos)
        ]
        return [
            "test" if number == fold else "validation" if group in chosen else "train"
            for group, number in zip(self.group, self.fold, strict=True)
        ]


def _running(sizes: np.ndarray) -> list[int]:
    """Return the sum of what comes before each."""
    return [0, *np.cumsum(sizes)[:-1].tolist()] if len(sizes) else []


def deal(photos: Sequence[str], alike: Iterable[Sequence[int]], folds: int) -> Folds:
    """Split photos into folds of about one size by a hash of their names; near-duplicates share a fold.

    Args:
        photos: Names of the photos.
        alike: Numbers of the photos of each group of near-duplicates.
        folds: Number of folds.
    """
    group = list(range(len(photos)))
    for numbers in alike:
        for number in numbers:
            group[number] = int(min(numbers))
    sizes, held = np.bincount(group, minlength=len(photos)), np.zeros(folds, np.int64)
    fold_of: dict[int, int] = {}
    for each in sorted(set(group), key=lambda each: stable_number(f"fold {photos[each]}")):
        fold_of[each] = int(held.argmin())
        held[fold_of[each]] += sizes[each]
    return Folds(list(photos), [fold_of[each] for each in group], group)


def load_photo_study(path: Path) -> PhotoStudy:
    """Read a study file.

    Raises:
        ValueError: unknown or missing keys, a base that is not listed, or a way of a name that is taken.
    """
    valid = field_names(PhotoStudy) - {"path"}
    content = require_keys(str(path), read_yaml(path), valid, valid)
    ways = {
        name: Way(**require_keys(f"{path}, {name}", way or {}, field_names(Way)))
        for name, way in content.pop("ways").items()
    }
    if ZERO_SHOT in ways or DEFAULT not in ways or ways[DEFAULT].changes:
        raise ValueError(
            f"{path}: `ways` are {', '.join(ways)}; expected {DEFAULT!r} without changes, and none called "
            f"{ZERO_SHOT!r}. Correct the names."
        )
    for name, way in ways.items():
        require_keys(f"{path}, {name}, `changes`", way.changes, CHANGED)
        if unknown := [base for base in way.bases or () if base not in content["bases"]]:
            raise ValueError(
                f"{path}, {name}: `bases` has {unknown[0]!r}; expected some of {', '.join(content['bases'])}. Add it "
                "to the bases, or correct the name."
            )
    return PhotoStudy(path=path, ways=ways, **content)


def find_folds(study: PhotoStudy) -> Folds:
    """Return the folds that are recorded, or deal them and keep them beside the records.

    Raises:
        ValueError: the folder has other photos than the record.
    """
    folder, path = Path(study.photos), study.results.with_name(FOLDS)
    photos = sorted(row["image"] for row in read_list(study))
    if path.is_file():
        folds = load_folds(study)
        if folds.photos != photos:
            raise ValueError(
                f"{folder} has other photos than {path}; expected the same {len(folds.photos)}. Write the folder "
                "anew, or move the study's records away."
            )
        return folds
    groups = find_groups(np.stack([read_thumbnail((folder / name).read_bytes()) for name in photos]))
    folds = deal(photos, [group.tolist() for group in groups], study.folds)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, vars(folds), indent=0)
    return folds


def load_folds(study: PhotoStudy) -> Folds:
    """Read the folds beside the records of a study."""
    return Folds(**json.loads(study.results.with_name(FOLDS).read_text(encoding="utf-8")))


def read_list(study: PhotoStudy) -> list[dict[str, str]]:
    """Read the list of the photos."""
    with (Path(study.photos) / "captions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_list(study: PhotoStudy, folds: Folds, fold: int, path: Path) -> None:
    """Write the list of the photos with a column `split` that holds out one fold."""
    splits = dict(zip(folds.photos, folds.splits(fold, study.validation), strict=True))
    rows = [{**row, "split": splits[row["image"]]} for row in read_list(study)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepare_run(study: PhotoStudy, folds: Folds, run: tuple[str, str, int], output: Path) -> Recipe:
    """Build the corpus of a fold, choose the settings as the command does, and return the recipe with a way's changes.

    Args:
        study: Plan.
        folds: Folds of its photos.
        run: Way, base and fold.
        output: Folder of corpus and recipe.
    """
    way, base, fold = run
    listing = output.with_name(f"fold-{fold}.csv")
    write_list(study, folds, fold, listing)
    command = Command(
        photos=Path(study.photos),
        base=study.bases[base],
        output=output,
        captions=listing,
        caption=tuple(f"{column}={perspective}" for column, perspective in study.captions.items()),
    )
    recipe = load_recipe(command.prepare())
    changes = study.ways[way].changes if way != ZERO_SHOT else {}
    old = {name: getattr(recipe, name) for name in changes}
    return replace(recipe, **merge_sections(old, changes))


def measure_run(study: PhotoStudy, folds: Folds, run: tuple[str, str, int], work: Path) -> dict[str, Any]:
    """Train a run, unless its base is measured as it is, and return its record."""
    way, base, fold = run
    output = work / "-".join(map(str, run))
    recipe = prepare_run(study, folds, run, output)
    facts: dict[str, Any] = {}
    checkpoint = Path(study.bases[base])
    if way != ZERO_SHOT:
        checkpoint = output / RUN
        train_run(recipe, RUN, output / CORPUS, checkpoint)
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        facts = {
            "changes": study.ways[way].changes,
            "recipe": {name: getattr(recipe, name) for name in CHANGED},
            "best_step": state["best_global_step"],
            "train_seconds": seconds_of_training(checkpoint),
        }
    model, processor = load_checkpoint(checkpoint)
    rows = open_split(output / CORPUS, "test")
    perspectives = list(study.captions.values())
    provenance = capture_provenance(model=way, dataset=study.path.stem, split=f"fold {fold}", seed=recipe.seed)
    return {
        **vars(provenance),
        "versions": dict(provenance.versions),
        **{"way": way, "base": base, "fold": fold},
        "base_hash": checksum(Path(study.bases[base]) / WEIGHTS)[:16],
        **facts,
        **measure_queries(model, processor, rows, perspectives, folds),
    }


def measure_queries(
    model: DualEncoder, processor: Any, rows: Dataset, perspectives: Sequence[str], folds: Folds
) -> dict[str, Any]:
    """Rank the answers of all queries of some photos, by the fused score and by each branch of a perspective.

    Args:
        model: Model with a branch or several.
        processor: Its processor.
        rows: Rows of the photos.
        perspectives: Perspectives of the texts.
        folds: Folds, for the numbers of the photos.

    Returns:
        `similarity`, the mean cosine of two branches of these perspectives. `owners`, the photos of each query by
        perspective and direction. `scores`, the rank of the best answer of each query from 0, and its average
        precision, by `fused` or branch, perspective and direction.

    Raises:
        ValueError: a photo or a caption that cannot be read.
    """
    corpus = embed_corpus(model, processor, rows, perspectives=perspectives)
    if corpus.left_out:
        raise ValueError(f"Photos or captions {dict(corpus.left_out)} cannot be read; expected all. Mend them.")
    numbers = [folds.photos.index(image_id) for image_id in rows["image_id"]]
    scores: dict[str, Any] = {}
    for told, ranked in ranks_by_question(PER_PERSPECTIVE, model, corpus, with_branches=True):
        score, perspective, direction = (str(told[key]) for key in ("branch", "perspective", "direction"))
        if score in (FUSED, *perspectives):
            found = scores.setdefault(score, {}).setdefault(perspective, {})
            precision = [round(each, DIGITS) for each in ranked.precision.tolist()]
            found[direction] = {"ranks": ranked.ranks.tolist(), "precision": precision}
    return {
        "similarity": similarity_of(corpus, list(model.config.perspectives), perspectives),
        "owners": owners_of(corpus, numbers),
        "scores": scores,
    }


def owners_of(corpus: EmbeddedCorpus, numbers: Sequence[int]) -> dict[str, dict[str, list[list[int]]]]:
    """Return the photos of each query by perspective and direction: all that a text is true of, or the photo itself.

    Args:
        corpus: Photos and texts.
        numbers: Number of each photo.
    """
    owners = {}
    for question in per_perspective(corpus.captions):
        of_texts: list[list[int]] = [[] for _ in question.texts]
        for image, text in question.pairs.tolist():
            of_texts[text].append(numbers[image])
        asking = sorted({image for image, _ in question.pairs.tolist()})
        both = (of_texts, [[numbers[image]] for image in asking])
        assert DIRECTIONS[0] == TEXT_TO_IMAGE
        owners[question.perspective] = dict(zip(DIRECTIONS, both, strict=True))
    return owners


def similarity_of(corpus: EmbeddedCorpus, names: Sequence[str], perspectives: Sequence[str]) -> float | None:
    """Return the mean cosine of two branches of these perspectives over photos; None if there are not two."""
    chosen = [names.index(name) for name in perspectives if name in names]
    if len(chosen) < 2:
        return None
    branches = corpus.branch_embeds[:, chosen].double()
    cosines = torch.einsum("nhd,ngd->nhg", branches, branches).mean(dim=0)
    first, second = torch.triu_indices(len(chosen), len(chosen), offset=1)
    return round(cosines[first, second].mean().item(), DIGITS)


def require_rows(study: PhotoStudy, rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuse records that another plan has made.

    Raises:
        ValueError: a way, base or fold that the plan does not have, other changes, or a base of two kinds of weights.
    """
    known, hashes = set(study.runs()), dict[str, str]()
    for row in rows:
        way, base, fold = row["way"], row["base"], row["fold"]
        where = f"{study.results} has way {way!r} from base {base!r}, fold {fold}"
        if (way, base, fold) not in known:
            raise ValueError(f"{where}; expected a run of {study.path}. Add it to the plan, or move the record away.")
        if way != ZERO_SHOT and row["changes"] != study.ways[way].changes:
            raise ValueError(f"{where} by other changes than {study.path}; expected the same. Rename one of them.")
        if hashes.setdefault(base, row["base_hash"]) != row["base_hash"]:
            raise ValueError(f"{where} with other weights than before; expected one base. Move the records away.")


def missing_runs(
    study: PhotoStudy, ways: Collection[str] | None, bases: Collection[str] | None
) -> list[tuple[str, str, int]]:
    """Return the runs without a record, of some ways and bases or of all."""
    done = {(row["way"], row["base"], row["fold"]) for row in load_results(study.results)}
    return [
        run
        for run in study.runs()
        if run not in done and (ways is None or run[0] in ways) and (bases is None or run[1] in bases)
    ]


def finish_runs(
    study: PhotoStudy, work: Path, ways: Collection[str] | None = None, bases: Collection[str] | None = None
) -> None:
    """Train and measure the runs that are missing and that no other process is at.

    Args:
        study: Plan.
        work: Folder of the checkpoints.
        ways: Names of the ways that are wanted. Default: all.
        bases: Names of the bases that are wanted. Default: all.

    Raises:
        ValueError: the records are of another plan, or of other photos.
    """
    require_rows(study, load_results(study.results))
    folds = find_folds(study)
    work.mkdir(parents=True, exist_ok=True)
    for run in missing_runs(study, ways, bases):
        name = "-".join(map(str, run))
        with suppress(Timeout), FileLock(work / f"{name}.lock", timeout=0):
            left = missing_runs(study, ways, bases)
            if run not in left:
                continue
            sys.stderr.write(f"== {name}, {len(left)} to do\n")
            append_result(study.results, measure_run(study, folds, run, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--ways", nargs="+", default=None, help="names of ways; default: all of the plan")
    parser.add_argument("--bases", nargs="+", default=None, help="names of bases; default: all of the plan")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/studies"), help="of checkpoints")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    study = load_photo_study(options.study)
    finish_runs(study, options.work_dir / study.path.stem, options.ways, options.bases)


if __name__ == "__main__":
    main()
