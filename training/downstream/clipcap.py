"""ClipCap on vectors of checkpoints: `python -m training.downstream.clipcap [--recipe FILE] [--tiny]`.

The paper's Table 5. The tower is frozen. Each image is encoded once, and a head turns its vectors into the first
tokens of a language model, which learns to go on with the captions of a corpus. Runs differ in what they hand over:
the fused vector, all branches, or one of them. Each is tested on the same images, by perplexity and by what it writes.
A run that was killed goes on where it was, to the same result.

Axes: N images, V vectors of an image, H branches, D projection width, L tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoTokenizer, Trainer, TrainingArguments, logging, set_seed

from holistic_clip_hf import from_clip
from holistic_clip_hf.cli.main import end_in_a_sentence
from holistic_clip_hf.corpus.build import corpus_name, count_perspectives, find_corpus, open_split, read_manifest
from holistic_clip_hf.evaluation.encoding import encode_images, load_checkpoint
from holistic_clip_hf.evaluation.ranking import bootstrap_interval
from holistic_clip_hf.evaluation.records import FUSED, Detail, Record, Recorder, capture_provenance, save_records
from holistic_clip_hf.images.left_out import row_names, usable_captions
from holistic_clip_hf.initialization import make_processor
from holistic_clip_hf.storage import shown, write_atomically, write_json
from holistic_clip_hf.trainer.recipes import require_run_name
from holistic_clip_hf.trainer.tiny import CLIP, CORPUS, make_tiny_clip, make_tiny_corpus, reset_ingredients
from training.downstream.caption_scores import require_scorers, score_captions
from training.downstream.clipcap_model import UNTRAINED, ClipCapConfig, ClipCapModel
from training.downstream.language_models import TINY, make_language_model
from training.downstream.runs import (
    exponential_of_mean,
    fingerprint,
    parse_options,
    read_part,
    read_recipe,
    require_training,
    tiny_training,
    train_once,
    weights_digest,
)
from training.seeds import with_seed

TASK = "captioning"
BRANCHES = "branches"
RESULTS, SCORES, ANSWERS = "results.json", "scores", "captions.json"
ENCODED_AT_ONCE = 32
PERPLEXITY, RATIO = "perplexity", "perplexity_ratio"


@dataclass(frozen=True)
class Source:
    """Part that a run has of its own.

    Args:
        checkpoint: Checkpoint of this package.
        vectors: `fused`, `branches` for all of them side by side, or the name of one branch.
    """

    checkpoint: str
    vectors: str


@dataclass(frozen=True)
class ClipCapRecipe:
    """A recipe file; see the comments at the head of `clipcap.yaml`.

    Args:
        name: Name of the file.
        corpus: Corpus, by its folder or its name in the cache.
        split_column: Column that says train, validation or test.
        perspectives: Perspectives whose captions are learned. If there are several, a text begins with its own.
        language_model: Name of a causal language model, or the fields of one from scratch.
        prefix_length: K, the number of tokens that the vectors of an image become, the same for all runs.
        max_tokens: Longest text in tokens; longer ones are cut.
        training: Fields of transformers' `TrainingArguments`, `seed` among them.
        runs: Part of each run; the others are held against the first.
        freeze_language_model: train the head alone.
        score_captions: write a caption for each test image, and score it as COCO does.
        num_beams: Number of beams of the search for a caption.
        held_out: Column and value of what is tested on in place of the test split.
    """

    name: str
    corpus: str
    split_column: str
    perspectives: list[str]
    language_model: str | dict[str, Any]
    prefix_length: int
    max_tokens: int
    training: dict[str, Any]
    runs: dict[str, Any]
    freeze_language_model: bool = False
    score_captions: bool = True
    num_beams: int = 5
    held_out: dict[str, str] | None = field(default=None)


def load_clipcap_recipe(path: Path) -> ClipCapRecipe:
    """Read a recipe.

    Raises:
        ValueError: keys that are unknown or lacking, values of another type, no runs.
    """
    recipe = read_recipe(path, ClipCapRecipe)
    require_training(f"{path}, training", recipe.training)
    if not recipe.runs or not recipe.perspectives:
        raise ValueError(f"{path} has no `runs` or no `perspectives`; expected at least one of each. Add it.")
    for name in recipe.runs:
        require_run_name(name, f"{path}: `runs`")
    runs = {name: read_part(f"{path}, runs, {name}", run, Source) for name, run in recipe.runs.items()}
    return replace(recipe, runs=runs)


class Vectors(NamedTuple):
    """Images of a split as a checkpoint sees them.

    Args:
        branches: (N, H, D) of unit length.
        fused: (N, D).
        rows: (N,), the row of each in the split.
        names: H names of branches.
        num_unusable: Number of images that could not be read.
    """

    branches: Tensor
    fused: Tensor
    rows: Tensor
    names: list[str]
    num_unusable: int

    def of(self, source: Source) -> Tensor:
        """Return what a run reads of the images: (N, V, D).

        Raises:
            ValueError: no such branch.
        """
        if source.vectors == FUSED:
            return self.fused[:, None]
        if source.vectors == BRANCHES:
            return self.branches
        if source.vectors not in self.names:
            raise ValueError(
                f"`vectors` is {source.vectors!r}; expected {FUSED!r}, {BRANCHES!r}, or a branch of "
                f"{source.checkpoint}, which has {', '.join(self.names)}. Correct the recipe."
            )
        return self.branches[:, [self.names.index(source.vectors)]]


@dataclass(frozen=True)
class Bench:
    """Recipe with its corpus opened, and the folder of its results."""

    recipe: ClipCapRecipe
    corpus: Path
    folder: Path

    def mark(self, run: str) -> str:
        """Return a hash that changes with all that the result of a run depends on."""
        source = self.recipe.runs[run]
        alone = replace(self.recipe, name="", runs={run: source})
        corpus = read_manifest(self.corpus)["fingerprint"]
        return fingerprint(alone, corpus, weights_digest(source.checkpoint))

    def rows(self, split: str) -> Dataset:
        """Return the rows of a split."""
        recipe = self.recipe
        return open_split(self.corpus, split, split_column=recipe.split_column, held_out=recipe.held_out)

    def vectors(self, source: Source, split: str) -> Vectors:
        """Return the images of a split as a checkpoint sees them, encoded once for all runs that start from it."""
        recipe = self.recipe
        facts = [weights_digest(source.checkpoint), read_manifest(self.corpus)["fingerprint"]]
        mark = fingerprint(Source(source.checkpoint, ""), *facts, recipe.split_column, str(recipe.held_out), split)
        path = self.folder / "vectors" / f"{split}-{mark}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _encode(source.checkpoint, self.rows(split), path)
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["told"])
            return Vectors(**{name: file.get_tensor(name) for name in file.keys()}, **told)  # noqa: SIM118


def _encode(checkpoint: str, rows: Dataset, path: Path) -> None:
    model, processor = load_checkpoint(checkpoint)
    if not model.branch_fusion.is_linear:
        raise ValueError(
            f"`checkpoint` is {checkpoint}, whose fusion is {model.config.fusion!r} and has no vector of its own; "
            "expected another, such as 'centroid'. Take another checkpoint."
        )
    encoded = encode_images(model, processor, rows, batch_size=ENCODED_AT_ONCE, progress=True)
    branches = encoded.branch_embeds
    with torch.no_grad():
        fused = model.branch_fusion.single_vectors(branches.to(model.device)).cpu()
    tensors = {"branches": branches, "fused": fused.contiguous(), "rows": encoded.rows}
    told = {"names": list(model.config.perspectives), "num_unusable": len(encoded.left_out)}
    with write_atomically(path) as file:
        file.write(save(tensors, {"told": json.dumps(told)}))


class Example(NamedTuple):
    """A caption as a language model reads it.

    Args:
        image: Index of its image among the vectors.
        perspective: Name of its perspective.
        text: Text with white space folded.
        prompt: Token ids before it, which are not learned.
        tokens: Token ids of it, the end token last.
    """

    image: int
    perspective: str
    text: str
    prompt: list[int]
    tokens: list[int]


def read_examples(recipe: ClipCapRecipe, rows: Dataset, kept: Sequence[int], tokenizer: Any) -> list[Example]:
    """Return the captions of a split's readable images, and say how many were cut or cannot be read.

    Args:
        recipe: Recipe, which says which perspectives.
        rows: Split of a corpus.
        kept: Row of each image among the vectors.
        tokenizer: Tokenizer of the language model.
    """
    names, captions, faults = row_names(rows), rows.select_columns("captions")["captions"], dict[str, str]()
    found, cut = [], 0
    for image, row in enumerate(kept):
        for perspective, text in usable_captions(names[row], captions[row], faults):
            if perspective not in recipe.perspectives:
                continue
            prompt = prompt_of(recipe, perspective, tokenizer)
            text = " ".join(text.split())
            tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            most = recipe.max_tokens - len(prompt) - 1
            cut += len(tokens) > most
            found.append(Example(image, perspective, text, prompt, [*tokens[:most], tokenizer.eos_token_id]))
    if cut or faults:
        print(f"{cut:,} captions are cut to {recipe.max_tokens} tokens, {len(faults):,} cannot be read.", flush=True)
    return found


def prompt_of(recipe: ClipCapRecipe, perspective: str, tokenizer: Any) -> list[int]:
    """Return the tokens that captions of a perspective begin with: its name if there are several, else none."""
    if len(recipe.perspectives) == 1:
        return []
    return tokenizer(f"{perspective.replace('_', ' ')}:", add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Collator:
    """Collator of captions with the vectors of their images (N, V, D)."""

    vectors: Tensor
    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return a batch as `ClipCapModel` takes it; `vectors` is (batch, V, D), all else (batch, L)."""
        ids = [torch.tensor([*each.prompt, *each.tokens]) for each in examples]
        labels = [torch.tensor([*[UNTRAINED] * len(each.prompt), *each.tokens]) for each in examples]
        return {
            "vectors": self.vectors[[each.image for each in examples]],
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=UNTRAINED),
        }


def train_run(bench: Bench, run: str) -> None:
    """Train a run unless it is there."""
    recipe, source = bench.recipe, bench.recipe.runs[run]
    kept: dict[str, Any] = {}

    def make(states: Path) -> Trainer:
        rows, vectors = bench.rows("train"), bench.vectors(source, "train")
        given = vectors.of(source)
        most = recipe.prefix_length + recipe.max_tokens
        set_seed(recipe.training["seed"])  # behind the encoding, which is done once and then read
        model, tokenizer = make_language_model(recipe.language_model, _texts(rows), most)
        kept["tokenizer"] = tokenizer
        config = ClipCapConfig(
            text_config=model.config,
            num_vectors=given.shape[1],
            vector_size=given.shape[2],
            prefix_length=recipe.prefix_length,
            freeze_language_model=recipe.freeze_language_model,
        )
        examples = read_examples(recipe, rows, vectors.rows.tolist(), tokenizer)
        return Trainer(
            model=ClipCapModel(config, model),
            args=TrainingArguments(output_dir=str(states), remove_unused_columns=False, **recipe.training),
            data_collator=Collator(given, tokenizer.pad_token_id),
            train_dataset=examples,
        )

    train_once(bench.folder / run, bench.mark(run), make, lambda folder: kept["tokenizer"].save_pretrained(folder))


def _texts(rows: Dataset) -> Iterator[str]:
    for captions in rows.select_columns("captions")["captions"]:
        for caption in usable_captions("", captions, {}):
            yield f"{caption.perspective}: {caption.text}"


def measure_run(bench: Bench, run: str) -> dict[str, Any]:
    """Return what a finished run finds on the test split: read if it is there, else measured and kept beside it."""
    path = bench.folder / SCORES / f"{run}-{bench.mark(run)}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ClipCapModel.from_pretrained(bench.folder / run).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(bench.folder / run)
    vectors = bench.vectors(bench.recipe.runs[run], "test")
    given = vectors.of(bench.recipe.runs[run])
    examples = read_examples(bench.recipe, bench.rows("test"), vectors.rows.tolist(), tokenizer)
    collator = Collator(given, tokenizer.pad_token_id)
    parts: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for perspective in bench.recipe.perspectives:
        asked = [each for each in examples if each.perspective == perspective]
        if not asked:
            raise ValueError(f"No test image has a caption of {perspective!r}. Leave it out of `perspectives`.")
        places = _by_image(asked)
        losses = _losses(model, collator, asked)
        means = [losses[each].mean().item() for each in places.values()]
        parts[perspective] = {"images": list(places), "losses": means, "captions": len(asked)}
        if bench.recipe.score_captions:
            answers = _write_captions(bench, model, tokenizer, given[list(places)], perspective)
            references = [[asked[place].text for place in each] for each in places.values()]
            parts[perspective] |= score_captions(answers, references)._asdict()
            written[perspective] = {"written": answers, "references": references}
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    sizes = {"trained": trained, "num_vectors": given.shape[1], "num_unusable": vectors.num_unusable}
    path.parent.mkdir(exist_ok=True)
    write_json(path.with_name(f"{run}-{ANSWERS}"), written)
    write_json(path, found := {**sizes, "perspectives": parts})
    return found


def _by_image(examples: Sequence[Example]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.image, []).append(place)
    return places


@torch.no_grad()
def _losses(model: ClipCapModel, collator: Collator, examples: Sequence[Example]) -> Tensor:
    """Return the mean negative log likelihood of each caption's tokens, the end token among them."""
    found, size = [], 64
    for start in tqdm(range(0, len(examples), size), desc="captions read"):
        batch = {name: value.to(model.device) for name, value in collator(examples[start : start + size]).items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()
        losses = F.cross_entropy(logits.mT, labels, ignore_index=UNTRAINED, reduction="none")
        found.append((losses.sum(dim=1) / (labels != UNTRAINED).sum(dim=1)).cpu())
    return torch.cat(found)


def _write_captions(bench: Bench, model: ClipCapModel, tokenizer: Any, vectors: Tensor, perspective: str) -> list[str]:
    prompt = torch.tensor(prompt_of(bench.recipe, perspective, tokenizer), dtype=torch.int64)
    options = {
        "max_new_tokens": bench.recipe.max_tokens - len(prompt),
        "num_beams": bench.recipe.num_beams,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    texts: list[str] = []
    for part in tqdm(vectors.split(64), desc="captions written"):
        ids = model.caption(part.to(model.device), prompt, **options)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def records_of(bench: Bench, found: Mapping[str, dict[str, Any]]) -> list[Record]:
    """Return all runs' numbers as records; the first run is what the others' perplexity is held against.

    Perplexity is the exponential of a mean over images, each of which counts alike.

    Args:
        bench: Recipe and corpus.
        found: Scores by run.
    """
    records: list[Record] = []
    first, seed = next(iter(found)), int(bench.recipe.training["seed"])
    for run, scores in found.items():
        provenance = capture_provenance(model=run, dataset=corpus_name(bench.corpus), split="test", seed=seed)
        recorder = Recorder(provenance, TASK, scores["num_unusable"])
        shared: dict[str, Detail] = {"vectors": bench.recipe.runs[run].vectors, "num_vectors": scores["num_vectors"]}
        shared |= {"prefix_length": bench.recipe.prefix_length, "trained": scores["trained"]}
        for perspective, part in scores["perspectives"].items():
            details = {"perspective": perspective, **shared}
            records += _records_of_part(recorder, details, part)
            base = found[first]["perspectives"][perspective]
            if run != first and part["images"] == base["images"]:
                pairs = zip(part["losses"], base["losses"], strict=True)
                differences = [ours - theirs for ours, theirs in pairs]
                records.append(_exponential(recorder, RATIO, differences, {**details, "against": first}, part))
    return records


def _records_of_part(recorder: Recorder, details: Mapping[str, Detail], part: Mapping[str, Any]) -> list[Record]:
    found = [_exponential(recorder, PERPLEXITY, part["losses"], details, part)]
    if "bleu" in part:
        found.append(recorder.record("bleu", part["bleu"], {**details, "k": 4}, _counts(part)))
        for metric in ("rouge", "cider"):
            values = torch.tensor(part[metric], dtype=torch.float64)
            ends = bootstrap_interval(values, seed=recorder.provenance.seed)
            mean = float(values.mean())
            found.append(recorder.record(metric, mean, details, _counts(part), confidence_interval=ends))
    return found


def _exponential(
    recorder: Recorder, metric: str, values: Sequence[float], details: Mapping[str, Detail], part: Mapping[str, Any]
) -> Record:
    """Return the exponential of the mean of one value for each image as a record."""
    value, ends = exponential_of_mean(values, recorder.provenance.seed)
    return recorder.record(metric, value, details, _counts(part), confidence_interval=ends)


def _counts(part: Mapping[str, Any]) -> dict[str, int]:
    return {"n_images": len(part["images"]), "n_captions": part["captions"]}


def table_of(records: Sequence[Record]) -> str:
    """Return a line for each run and perspective, a column for each metric, with intervals of 95 %."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        line = cells.setdefault((str(record.details["perspective"]), record.model), {})
        ends = record.confidence_interval
        is_share = record.metric not in (PERPLEXITY, RATIO)
        factor, places = (100, 1) if is_share else (1, 3)
        told = "" if ends is None else f" [{factor * ends[0]:.{places}f}, {factor * ends[1]:.{places}f}]"
        line[record.label] = f"{factor * record.value:.{places}f}{told}"
    columns = list(dict.fromkeys(name for line in cells.values() for name in line))
    lines = [f"{'perspective':14}{'run':20}" + "".join(f"{name:>26}" for name in columns)]
    for (perspective, run), line in sorted(cells.items(), key=lambda item: item[0][0]):
        lines.append(f"{perspective:14}{run:20}" + "".join(f"{line.get(name, ''):>26}" for name in columns))
    return "\n".join(lines)


def make_tiny(recipe: ClipCapRecipe, ingredients: Path) -> ClipCapRecipe:
    """Return the recipe at its smallest, with a corpus of drawings and one random checkpoint of several branches.

    Args:
        recipe: Recipe as it is.
        ingredients: Folder for what is drawn; what an earlier call left there is replaced.
    """
    reset_ingredients(ingredients)
    make_tiny_corpus(ingredients / CORPUS, recipe.perspectives, recipe.split_column)
    make_tiny_clip(ingredients / CLIP)
    named = [run.vectors for run in recipe.runs.values() if run.vectors not in (FUSED, BRANCHES)]
    names = list(dict.fromkeys([*named, "short", "style"]))
    model = from_clip(ingredients / CLIP, perspectives=names, perturbation=1.0)
    processor = make_processor(model, ingredients / CLIP)
    for part in (model, processor):
        part.save_pretrained(ingredients / CLIP)
    checkpoint = str(ingredients / CLIP)
    return replace(
        recipe,
        corpus=str(ingredients / CORPUS),
        language_model=TINY["gpt2"],
        max_tokens=min(recipe.max_tokens, 24),
        training=tiny_training(recipe.training),
        runs={name: replace(run, checkpoint=checkpoint) for name, run in recipe.runs.items()},
        num_beams=min(recipe.num_beams, 2),
        held_out=None,
    )


def run_recipe(recipe: ClipCapRecipe, folder: Path) -> list[Record]:
    """Train and measure every run of a recipe, and print the table; of several processes the first one measures.

    Args:
        recipe: Recipe.
        folder: Folder of its results.

    Raises:
        ValueError: a corpus without captions of a perspective, or whatever the recipe's parts refuse.
    """
    if recipe.score_captions:
        require_scorers()
    bench = Bench(recipe, find_corpus(recipe.corpus), folder)
    counts = count_perspectives(bench.rows("train"))
    if absent := [each for each in recipe.perspectives if each not in counts]:
        raise ValueError(
            f"`perspectives` has {', '.join(absent)}, of which {recipe.corpus} has no caption to train on; expected "
            f"some of {', '.join(sorted(counts)) or 'none'}. Correct the recipe."
        )
    for run in recipe.runs:
        print(f"== {run}", flush=True)
        train_run(bench, run)
    if not PartialState().is_main_process:
        return []
    records = records_of(bench, {run: measure_run(bench, run) for run in recipe.runs})
    save_records(folder / RESULTS, records)
    print(f"== captions of {corpus_name(bench.corpus)}, test; BLEU, ROUGE-L and CIDEr times 100")
    print(table_of(records))
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a recipe, as the command line says."""
    told = {"corpus": "another corpus than the recipe's", "seed": "another seed than the recipe's; its runs lie apart"}
    options = parse_options("clipcap", __doc__, arguments, **told)
    with end_in_a_sentence("python -m training.downstream.clipcap"):
        disable_progress_bars()
        logging.disable_progress_bar()
        recipe = load_clipcap_recipe(options.recipe)
        if options.seed is not None:
            if not options.seed.isdecimal():
                raise ValueError(f"`--seed` is {shown(options.seed)}; expected a whole number.")
            recipe = with_seed(recipe, int(options.seed))
        folder = options.output_dir / ("tiny" if options.tiny else "") / recipe.name
        if options.corpus is not None:
            recipe = replace(recipe, corpus=options.corpus)
        if options.tiny:
            recipe = make_tiny(recipe, folder / "ingredients")
        run_recipe(recipe, folder)


if __name__ == "__main__":
    main()
