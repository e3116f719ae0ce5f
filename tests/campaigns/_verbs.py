"""What tries share: drawn photos with captions, a corpus, checkpoints, a captioner; and each verb that writes.

A verb knows how it is run and what its result is, as something that equals that of an undisturbed run.
"""

import csv
import hashlib
import os
import random
import re
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _child import Child, Ended, Place, command, sentence
from PIL import Image, ImageDraw

NUM_PHOTOS = 24
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
PERSPECTIVES = ("short", "colour")
COLUMNS = [word for name in PERSPECTIVES for word in ("--caption", f"{name}={name}")]
SPLIT = ("--validation", "0.2", "--test", "0.3", "--no-report")
PROMPTS = """
- {name: scene, prompt: "Describe it.", max_new_tokens: 6, temperature: 1.5}
- {name: style, prompt: "Its style?", max_new_tokens: 6, temperature: 1.0}
"""
RECIPE = """
corpus: CORPUS
split_column: split
image_size: 32
tokenizer: {vocab_size: 560, max_length: 24}
augmentation: {scale: [0.5, 1.0], ratio: [0.8, 1.25]}
model:
  projection_dim: 16
  text_config: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2}
  vision_config: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8}
training: {seed: 0, max_steps: 5, per_device_train_batch_size: 2, per_device_eval_batch_size: 2, learning_rate: 1.0e-2,
  warmup_steps: 1, logging_steps: 1, eval_strategy: steps, eval_steps: 3, save_steps: 1, save_total_limit: 2,
  captions_per_image: 1, use_cpu: true, dataloader_num_workers: WORKERS}
runs:
  holistic: {perspectives: [short, colour], slots: [short, colour]}
"""


def draw_photo(number: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Draw a picture that no other number gives."""
    image = Image.new("RGB", size, "white")
    fill = list(COLOURS.values())[number % len(COLOURS)]
    pen, left = ImageDraw.Draw(image), 2 + number % 12
    (pen.rectangle if number % 2 else pen.ellipse)((left, 6, left + 20, 30), fill=fill)
    return image


def write_list(path: Path, names: list[str]) -> Path:
    """Write a list of photos with a column for each perspective."""
    with open(path, "w", newline="") as file:
        rows = [[name, f"a drawing, number {n}", f"all {list(COLOURS)[n % 4]}"] for n, name in enumerate(names)]
        csv.writer(file).writerows([["file_name", *PERSPECTIVES], *rows])
    return path


def make_photos(shared: Path) -> None:
    """Make the photos, and beside them the list of their captions."""
    (shared / "photos").mkdir()
    names = [f"{number:02}.png" for number in range(NUM_PHOTOS)]
    for number, name in enumerate(names):
        draw_photo(number).save(shared / "photos" / name)
    write_list(shared / "captions.csv", names)


def make_checkpoints(shared: Path) -> None:
    """Make a stock CLIP and a checkpoint of this package, both random."""
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    from conftest import randomise
    from holistic_clip_hf import HolisticCLIPProcessor
    from holistic_clip_hf.initialization import from_clip
    from holistic_clip_hf.trainer.tiny import make_tiny_clip

    make_tiny_clip(shared / "clip")
    model = from_clip(str(shared / "clip"), perspectives=list(PERSPECTIVES), seed=0)
    randomise(model)
    model.save_pretrained(shared / "model")
    parts = (kind.from_pretrained(shared / "clip") for kind in (CLIPImageProcessorPil, CLIPTokenizer))
    HolisticCLIPProcessor(*parts).save_pretrained(shared / "model")


def make_corpus(shared: Path) -> None:
    command("corpus", *list_words(shared), "--output", shared / "corpus", *SPLIT)()


def list_words(shared: Path) -> list[str | Path]:
    """Return the words that name the list of photos."""
    return ["list", shared / "captions.csv", "--root", shared / "photos", *COLUMNS]


def make_index(shared: Path) -> None:
    """Index the photos by the model that all tries share."""
    command("search", "index", shared / "photos", "--model", shared / "model", "--index", shared / "index")()


def make_world(shared: Path) -> None:
    """Make all that the verbs need."""
    from tiny_captioner import make_tiny_captioner

    make_photos(shared)
    make_checkpoints(shared)
    make_corpus(shared)
    make_tiny_captioner(shared / "captioner")
    (shared / "prompts.yaml").write_text(PROMPTS)
    recipe = RECIPE.replace("CORPUS", str(shared / "corpus"))
    for workers in (0, 1):
        (shared / f"workers{workers}.yaml").write_text(recipe.replace("WORKERS", str(workers)))
    evaluate = ["--model", shared / "model", "--corpus", shared / "corpus", "--split", "train"]
    command("evaluate", *evaluate, "--output", shared / "model" / "results.json")()


@dataclass(frozen=True)
class Verb:
    """A verb that writes.

    Args:
        work: Function of what is shared and the folder that is written; it returns what runs the verb.
        result: Function of that folder and of how the run ended; it returns what two equal runs have in common.
        begin: Function that puts into the folder what the verb changes there.
        programs: Names of programs that it may start.
    """

    work: Callable[[Path, Path], Callable[[], Any]]
    result: Callable[[Path, Ended], Any]
    begin: Callable[[Path, Path], Any] = lambda shared, out: None
    programs: tuple[str, ...] = ()

    def start(self, shared: Path, place: Place) -> Child:
        """Start it in a process of its own."""
        return Child(self.work(shared, place.out), place, programs=self.programs)


def rows_of_captions(out: Path, ended: Ended) -> Any:
    from holistic_clip_hf.captioning.store import CaptionStore

    return sorted(map(repr, CaptionStore(out / "rows").rows()))


def rows_of_corpus(folder: Path) -> Any:
    """Return what a corpus holds, without dates and the order of shards."""
    import pyarrow.parquet as pq

    from holistic_clip_hf.corpus.build import read_manifest

    manifest, found = read_manifest(folder), []
    for shard in manifest["shards"].values():
        path = folder / shard["file"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != shard["sha256"]:
            return f"{path.name} is not what the manifest says"
        found += [repr(row) for row in pq.read_table(path).to_pylist()]
    left_over = sorted(path.name for path in (folder / "data").iterdir() if not path.name.endswith(".parquet"))
    return sorted(found), manifest["rows"], manifest.get("num_skipped", 0), left_over


def rows_of_index(folder: Path) -> Any:
    """Return stamp and vectors by image id of the rows that count, and what was left out."""
    from holistic_clip_hf.search.store import open_whole, verify_index

    verify_index(folder)
    manifest, datasets = open_whole(folder)
    found = {}
    for segment, dataset in zip(manifest.segments, datasets, strict=True):
        for number, row in enumerate(dataset):
            if number not in segment.dead:
                vectors = [[round(each, 5) for each in row[f"vector.{name}"]] for name in PERSPECTIVES]
                found[row["image_id"]] = (row["stamp"], vectors)
    return found, sorted(each.image_id for each in manifest.left_out)


def records_of(path: Path) -> Any:
    from holistic_clip_hf.evaluation.records import load_records

    return {repr(each.key): each.value for each in load_records(path)}


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_of(folder: Path) -> Any:
    """Return the hash of the weights, and the names of all files of the checkpoint."""
    return hash_of(folder / "model.safetensors"), sorted(path.name for path in folder.iterdir())


def plan_of(ended: Ended) -> list[str]:
    """Return what a dry run printed, without the name of its scratch folder."""
    return [re.sub(r"/\S+", "PATH", line) for line in ended.printed.splitlines()]


def result_of_finetune(out: Path, ended: Ended) -> Any:
    records = records_of(out / "mine" / "model" / "results.json")
    return rows_of_corpus(out / "mine" / "corpus"), weights_of(out / "mine" / "model"), records


def two_ranks(work: Callable[[], Any]) -> Callable[[], None]:
    """Return what does `work` in two processes that meet on loopback."""

    def both() -> None:
        with closing(socket.socket()) as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        other = os.fork()
        rank = "0" if other else "1"
        os.environ.update(meeting | {"RANK": rank, "LOCAL_RANK": rank})
        work()
        if not other:
            os._exit(0)
        _, status = os.waitpid(other, 0)
        sys.exit(os.waitstatus_to_exitcode(status))

    return both


def train(shared: Path, out: Path, workers: int = 0) -> Callable[[], Any]:
    recipe = shared / f"workers{workers}.yaml"
    return command("train", "--recipe", recipe, "--run", "holistic", "--output-dir", out / "runs")


def train_on_a_stream(shared: Path, out: Path) -> Callable[[], Any]:
    def work() -> None:
        from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
        from holistic_clip_hf.corpus.build import load_corpus
        from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
        from holistic_clip_hf.trainer.trainer import last_whole_checkpoint

        options = {"max_steps": 5, "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4}
        options |= {"use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 1, "warmup_steps": 0}
        stream = load_corpus(shared / "corpus").to_iterable_dataset(num_shards=2).shuffle(seed=7, buffer_size=5)
        trainer = HolisticCLIPTrainer(
            HolisticCLIPModel.from_pretrained(shared / "model"),
            HolisticCLIPTrainingArguments(str(out / "states"), **options),
            processing_class=HolisticCLIPProcessor.from_pretrained(shared / "model"),
            train_dataset=stream,
        )
        state = last_whole_checkpoint(out / "states")
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        trainer.save_result(out / "result")

    return sentence(work)


def caption(shared: Path, out: Path) -> Callable[[], Any]:
    asked = ["--model", shared / "captioner", "--perspectives-file", shared / "prompts.yaml", "--batch-size", "2"]
    return command("caption", "folder", shared / "photos", *asked, "--output", out / "rows")


def on_corpus(verb: str, *words: str | Path) -> Callable[[Path, Path], Callable[[], Any]]:
    """Return a verb that measures the checkpoint on the corpus; OUT in its words is the folder that is written."""

    def work(shared: Path, out: Path) -> Callable[[], Any]:
        given = [str(word).replace("OUT", str(out)) for word in words]
        return command(verb, "--model", shared / "model", "--corpus", shared / "corpus", *given)

    return work


def finetune(shared: Path, out: Path) -> Callable[[], Any]:
    given = ["--captions", shared / "captions.csv", *COLUMNS, "--base", shared / "clip", "--output", out / "mine"]
    return command("finetune", shared / "photos", *given, "--epochs", "2", "--batch-size", "4", "--test", "0.3")


def copy_model(shared: Path, out: Path) -> None:
    shutil.copytree(shared / "model", out / "model", dirs_exist_ok=True)


def build(shared: Path, out: Path) -> Callable[[], Any]:
    split = ["--validation", "0.2", "--test", "0.3", "--rows-per-shard", "3"]
    return command("corpus", *list_words(shared), "--output", out / "corpus", *split)


def index(shared: Path, out: Path) -> Callable[[], Any]:
    given = ["--model", shared / "model", "--batch-size", "3", "--index", out / "index"]
    return command("search", "index", shared / "photos", *given)


def picture(shared: Path, out: Path) -> Callable[[], Any]:
    at = ["--model", shared / "model", "--corpus", shared / "corpus", "--split", "train"]
    return command("evaluate", *at, "--output", out / "results.json", "--picture", out / "grid.png")


RUN = Path("runs") / "workers0" / "holistic"
VERBS = {
    "caption": Verb(caption, rows_of_captions),
    "corpus": Verb(build, lambda out, ended: rows_of_corpus(out / "corpus")),
    "search index": Verb(index, lambda out, ended: rows_of_index(out / "index")),
    "train": Verb(train, lambda out, ended: weights_of(out / RUN)),
    "train with workers": Verb(
        lambda shared, out: train(shared, out, 1), lambda out, ended: weights_of(out / "runs/workers1/holistic")
    ),
    "train on a stream": Verb(train_on_a_stream, lambda out, ended: weights_of(out / "result")),
    "train on two ranks": Verb(
        lambda shared, out: two_ranks(train(shared, out)), lambda out, ended: weights_of(out / RUN)
    ),
    "finetune": Verb(finetune, result_of_finetune),
    "evaluate": Verb(
        on_corpus("evaluate", "--tasks", "retrieval", "branches", "--split", "train", "--output", "OUT/results.json"),
        lambda out, ended: records_of(out / "results.json"),
    ),
    "evaluate with a picture": Verb(
        picture, lambda out, ended: (records_of(out / "results.json"), hash_of(out / "grid.png"))
    ),
    "fit": Verb(
        on_corpus("fit", "--fusion", "weighted", "--split", "train", "--output", "OUT/fitted"),
        lambda out, ended: weights_of(out / "fitted"),
    ),
    "card": Verb(
        lambda shared, out: command("card", out / "model"),
        lambda out, ended: (out / "model" / "README.md").read_text(),
        begin=copy_model,
    ),
    "publish": Verb(
        lambda shared, out: command("publish", shared / "model", "me/mine", "--license", "mit", "--dry-run"),
        lambda out, ended: plan_of(ended),
        programs=(Path(sys.executable).name,),
    ),
}
SLOW = ("finetune", "publish", "train on two ranks")  # each takes as long as several others


def draw_verb(draw: random.Random, names: tuple[str, ...] | None = None) -> str:
    """Draw a verb; slow ones come more rarely."""
    names = tuple(VERBS) if names is None else names
    return draw.choices(names, [1 if name in SLOW else 3 for name in names])[0]
