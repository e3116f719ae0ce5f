"""What users get wrong at the command line: one sentence each, exit code 2, no traceback, before any work."""

import json
import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors import SafetensorError
from tqdm.auto import tqdm

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import end_in_a_sentence, main, parse
from holistic_clip_hf.corpus.build import build_corpus
from photo_index import NAMES, write_photos

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "runs: {a: {perspectives: [short], slots: [short]}}"
# By the verb's options, a part of the sentence. {0} is a folder with photos, a corpus and a checkpoint.
MISTAKES = {
    "trian": "the verb is 'trian'; expected one of caption, corpus, train.*Did you mean 'train'",
    "--verbose": "the verb is '--verbose'",
    "--print-completion fish": "--print-completion is 'fish'; expected one of bash, zsh",
    "corpus": "the first word is missing; expected one of folder, list, .*Write, for example, `holistic-clip corpus f",
    "caption photos": "the first word is 'photos'; expected one of folder, list, official, tar, dataset. Write",
    "search fnd dog": "the first word is 'fnd'; expected one of index, find, check, export, import. Did you mean 'fi",
    "search find a dog --index {0}/i": "unknown dog, put the whole query in quotes. See `holistic-clip search find --",
    "search index": "missing IMAGES, --model CHECKPOINT, --index FOLDER. See `holistic-clip search index --help`.$",
    "corpus folder {0}/photos --outptu x": "missing --output FOLDER; unknown --outptu x. See `holistic-clip corpus f",
    "evaluate --model m --tasks retrieval --tasks branches": "`--tasks` is given 2 times; expected once. Put all",
    "search find a --index {0}/i --where a=b --where c=d": "`--where` is given 2 times; expected once",
    "demo {0}/none {0}/photos --index {0}/photos/ix": "`output` is .*ix, which is inside the source",
    "demo {0}/model {0}/photos --port 99999": "`--port` is 99999; expected 1 to 65535",
    "demo {0}/model {0}/photos --port -1": "`--port` is -1; expected 1 to 65535",
    "demo {0}/model {0}/photos --host nosuchhost.invalid": "`--host` is nosuchhost.invalid, which has no address",
    "search index {0}/photos --model {0}/damaged --index {0}/i": "`model` is .*damaged, which is not safe to load",
    "evaluate --model {0}/damaged --corpus {0}/corpus": "`model` is .*damaged, which is not safe to load",
    "corpus folder {0}/nothing --output {0}/c": "`PATH` is .*nothing, which is not a folder",
    "corpus folder {0}/photos --output {0}/photos": "`--output` is .*photos, which is the source itself",
    "corpus folder {0}/photos --output {0}": "`--output` is .*, which is around the source",
    "corpus folder {0}/photos --output {0}/model --no-report": "which holds .*expected a new or empty folder",
    "corpus folder {0}/photos --output {0}/c --no-report": "No image of photos has a caption",
    "corpus folder {0}/photos --output {0}/c --caption a=b": "`--caption` is a=b; expected none",
    "corpus folder {0}/photos --output {0}/c --validation 2": "`--validation` is 2.0 and `--test` is",
    "corpus folder {0}/photos --output {0}/c --validation nan": "`--validation` is nan",
    "corpus folder {0}/photos --output {0}/c --workers 0": "`--workers` is 0; expected 1 or more",
    "corpus folder {0}/photos --output {0}/c --drop-similar 7": "`--drop-similar` is 7.0; expected",
    "corpus folder {0}/photos --output {0}/c --rows-per-shard 0": "`--rows-per-shard` is 0; expected 1",
    "corpus folder {0}/photos --output {0}/c --min-side 0": "`--min-side` is 0; expected 1 or more",
    "corpus folder {0}/photos --output {0}/c --rows {0}/photos": "`--rows` is .*photos; expected a folder of caption",
    "corpus list {0}/l.csv --output {0}/c --caption a=b=c": "`--caption` is a=b=c; expected COLUMN=PERSPECTIVE",
    "corpus folder {0}/with_list --output {0}/with_list/c": "`--output` is .*inside the source",
    "corpus folder {0}/with_list --output {0}/c --perspective web": "`--perspective` is web; expected none, since",
    "corpus folder {0}/photos --output {0}/c --validation two": "Error parsing --validation: .*'two'",
    "corpus folder {0}/photos --output {0}/c --rows {0}/none": "`--rows` is .*none; expected a folder of caption rows",
    "corpus tar {0}/photos --output {0}/c": "`archives` has .*photos, a folder without a .tar file",
    "corpus list {0}/short.yaml --output {0}/c": "short.yaml has no record; .* begins with 'runs: {a: ",
    "corpus list {0}/broken.yaml --output {0}/c --encoding x": "`--encoding` is 'x'; expected one that Python knows",
    "caption list {0}/none.csv --model m --output {0}/rows": "`PATH` is .*none.csv, which is not a file",
    "corpus list {0}/none.csv --output {0}/c": "`PATH` is .*none.csv, which is not a file",
    "corpus tar {0}/none.tar --output {0}/c": "`PATH` has .*none.tar, which is not a file",
    "corpus official {0}/l.jsonl --root {0}/none --positions a --output {0}/c": "l.jsonl, which is not a file",
    "caption folder {0}/photos --model m --output {0}/rows --perspectives moon": r"`--perspectives` has \['moon'\]",
    "caption folder {0}/photos --model m --output {0}/rows --perspectives-file {0}/no.yaml": "no.yaml, which is not",
    "caption folder {0}/photos --model m --output {0}/rows --shard 8/8": "`--shard` is '8/8'; expected i/n",
    "caption folder {0}/photos --model {0}/photos --output {0}/rows": "`--model` is .*photos.*be loaded",
    "caption folder {0}/photos --model m --server http://[::1]:9 --output {0}/photos": "`--output` is .*source itself",
    "caption folder {0}/photos --model m --server nowhere --output {0}/rows": "`--server` is 'nowhere'; expected",
    "train --recipe {0}/none.yaml --run a": "`--recipe` is .*none.yaml, which is not a file",
    "train --recipe {0}/short.yaml --run a": "short.yaml: missing keys|short.yaml: ",
    "train --recipe {0}/broken.yaml --run a": "broken.yaml: line 1",
    "train --recipe {0}/short.yaml --run a --learning-rate 1": "unknown --learning-rate.*stand in the recipe, under",
    "train --recipe {0}/emoji.yaml --run clip --corpus {0}/photos": "`--corpus` is .*photos, which holds no corpus",
    "train --recipe {0}/emoji.yaml --run clip --corpus {0}/listed": "whose corpus.json is damaged.*build the corpus",
    "evaluate --model {0}/model --corpus {0}/listed": "whose corpus.json is damaged",
    "evaluate --model {0}/model --corpus {0}/photos": "holds no corpus; expected.*Build one: `holistic-clip corpus",
    "evaluate --model {0}/model --corpus {0}/corpus --split-column image": "is 'image', which does not hold texts",
    "evaluate --model {0}/model": "`--corpus` is missing",
    "evaluate --model {0}/model --corpus {0}/none": "`corpus` is .*none; expected the folder of a corpus",
    "evaluate --model {0}/photos --corpus {0}/corpus": "`model` is .*photos; expected the folder of a checkpoint",
    "evaluate --model {0}/clip --corpus {0}/corpus": "`model` is .*clip, a checkpoint of 'clip'",
    "evaluate --model {0}/model --corpus {0}/corpus --split tset": "'tset'.*expected",
    "evaluate --model {0}/model --corpus {0}/corpus --tasks singing": "invalid choice 'singing'",
    "fit --model {0}/model --corpus {0}/corpus --fusion maen": "invalid choice 'maen'.*weighted",
    "fit --model {0}/model --corpus {0}/corpus --fusion weighted --output {0}/clip": "`--output` is .*clip, which",
    "fit --model {0}/model --corpus {0}/corpus --fusion weighted --output {0}/photos": "`--output` is .*holds .*g",
    "search find --like {0}/a.png --picture {0}/a.png --index {0}/i": "`--picture` is .*a.png, the image of `--like`",
    "search index {0}/nothing --model {0}/model --index {0}/i": "`images` is .*nothing, which is not a folder",
    "search index {0}/photos --model {0}/model --index {0}/photos": "`output` is .*photos, which is the source itself",
    "search index {0}/photos --model {0}/model --index {0}/i --columns artist": "`--columns` is artist; expected none",
    "search index {0}/photos --model {0}/none --index {0}/photos/ix": "`output` is .*ix, which is inside the source",
    "search index {0}/photos --model {0}/none --index {0}/a.yaml": "`output` is .*a.yaml, which is a file",
    "search index {0}/photos --model {0}/none --index {0}/i --batch-size 0": "`--batch-size` is 0; expected 1 or more",
    "search index {0}/photos --model {0}/none --index {0}/i --dimensions 0": "`--dimensions` is 0; expected 1 or more",
    "search index {0}/photos --model {0}/none --index {0}/i --precision binary --lookup hnsw": "Choose 'ivf'",
    "search export --index {0}/i --qdrant {0}/q --collection c --batch-size -1": "`--batch-size` is -1; expected 1",
    "evaluate --model {0}/none --corpus {0}/corpus --output {0}/photos": "`--output` is .*photos, which is a folder",
    "search index {0}/photos --model {0}/none --index {0}/short.yaml": "`output` is .*short.yaml, which is a file",
    "search find dog --index {0}/none": "holds no index",
    "search check --index {0}/photos": "holds no index",
    "card {0}/photos": "`PATH` is .*photos, which has no config.json",
    "card": "`PATH` is missing; expected the folder of a checkpoint",
    "fit --model {0}/model --corpus {0}/corpus --fusion weighted": "`--output` is missing; .* itself with `--replace`",
    "fit --model {0}/model --corpus {0}/corpus --fusion weighted --output {0}/model": "which holds a checkpoint",
    "publish {0}/model a/b/c --dry-run": "`STR` is 'a/b/c'; expected owner/name",
    "publish {0}/corpus me/mine --license mit --dry-run": "`--license` is mit; expected none, since .* is a corpus",
    "publish {0}/corpus me/mine --language en --dry-run": "`--language` is en; expected none",
    "publish {0}/photos someone/mine --dry-run": "config.json",
    "publish {0}/nothing someone/mine --dry-run": "nothing",
    "demo {0}/model {0}/nothing": "`root` is .*nothing, which is not a folder",
}


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., HolisticCLIPModel],
) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    make_model(perspectives=NAMES).save_pretrained(folder / "model")
    make_model(perspectives=NAMES).save_pretrained(folder / "damaged")
    weights = folder / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "clip").mkdir()
    (folder / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (folder / "short.yaml").write_text(RECIPE)
    (folder / "a.yaml").touch()
    (folder / "broken.yaml").write_text("runs: {a: [")
    shutil.copy(ROOT / "training/recipes/emoji.yaml", folder)
    (folder / "with_list").mkdir()
    (folder / "with_list" / "metadata.csv").write_text("file_name,alt\na.png,an a\n")
    (folder / "listed").mkdir()
    (folder / "listed" / "corpus.json").write_text("[]")
    return folder


@pytest.fixture
def filled(workplace: Path, corpus: Dataset, processor: HolisticCLIPProcessor) -> Path:
    if not (workplace / "corpus").is_dir():
        processor.save_pretrained(workplace / "model")
        write_photos(corpus, workplace / "photos")
        rows = [{**row, "split": "test"} for row in corpus]
        features = corpus.features.copy()
        features["split"] = type(features["image_id"])("string")
        build_corpus(workplace / "corpus", {"all": lambda: rows}, features, fingerprint="1", counted=("split",))
    return workplace


@pytest.mark.parametrize(("command", "message"), MISTAKES.items(), ids=lambda text: text[:60])
def test_a_mistake_is_one_sentence(
    command: str, message: str, filled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled)
    before, files = signal.getsignal(signal.SIGTERM), sorted(path for path in filled.rglob("*") if path.is_file())
    try:
        with pytest.raises(SystemExit) as ended:
            main([word.format(filled) for word in command.split()])
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(message, " ".join(said.split())), said
    assert "Traceback" not in said and "───" not in said
    assert said.count("\n") == 1 and said.startswith("holistic-clip")
    assert sorted(path for path in filled.rglob("*") if path.is_file()) == files


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"are 127.0.0.1 and {port}, where nothing can listen "):
            parse("demo", [str(tmp_path / "model"), str(tmp_path), "--port", str(port)])()


def test_debug_shows_the_traceback() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="holds no index"):
        main(["search", "check", "--index", "/nowhere", "--debug"])
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "old", ["caption", "build_corpus", "train", "evaluate", "fit_fusion", "search", "publish", "card"]
)
def test_old_verbs_say_where_to_go(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"training.{old}", run_name="__main__")
    assert ended.value.code == 2 and "use `holistic-clip " in capsys.readouterr().err


def test_old_module_of_the_page_says_where_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    with pytest.raises(SystemExit) as ended:
        runpy.run_module("holistic_clip_hf.demo", run_name="__main__")
    assert ended.value.code == 2 and "use `holistic-clip demo`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("example", "command"),
    [("emoji", "`python -m training.emoji`"), ("tuxpaint", "`python -m training.debian tuxpaint`")],
)
def test_the_old_verb_of_an_example_says_where_to_go(
    example: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    monkeypatch.setattr("sys.argv", ["build_corpus", example])
    with pytest.raises(SystemExit):
        runpy.run_module("training.build_corpus", run_name="__main__")
    assert f"use {command}," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), "A file cannot be written.* Free space"),
        (RuntimeError("[enforce fail at inline_container.cc:672]. unexpected pos 9 vs 8"), "A file cannot be written"),
        (SafetensorError("header too large"), "A file of weights is damaged .* Get it again"),
        (RecursionError("maximum recursion depth exceeded"), "A file is nested deeper than can be read"),
        (
            RuntimeError("pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
            "Another process of this run has ended",
        ),
    ],
)
def test_what_is_not_a_value_error_is_a_sentence_too(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    bar = tqdm(total=5)
    try:
        with pytest.raises(SystemExit) as ended, end_in_a_sentence("holistic-clip train"):
            bar.update()
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(f"holistic-clip train: {sentence}", last), last  # on a line of its own, behind the bar's


def test_an_exception_that_nobody_expects_keeps_its_traceback() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="bug"), end_in_a_sentence("holistic-clip train"):
        raise RuntimeError("a bug")
    signal.signal(signal.SIGTERM, before)
