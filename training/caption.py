"""Caption images from several perspectives: what there is, the main object, the background, the style and so on.

    python -m training.caption folder photos --model HuggingFaceTB/SmolVLM2-500M-Instruct --output captions

The answers, and the failures to get one, are rows of JSON in the folder `--output`. The same command goes on where it
was stopped or killed, and asks nothing twice; several captioners and files of prompts may share one folder. `python -m
training.build_corpus folder photos --rows captions ...` makes images and rows a corpus.

The model runs on this machine or, many times faster, behind a server that speaks OpenAI's chat completions:

    vllm serve Qwen/Qwen2.5-VL-7B-Instruct
    python -m training.caption folder photos --server http://localhost:8000 --model Qwen/Qwen2.5-VL-7B-Instruct \\
        --output captions

On a cluster, give each of n processes its own `--shard`, 0/n, 1/n and so on, and all of them the same `--output`.
Images may also be in a list, in tar archives or in a data set: see the commands below; each has a --help of its own.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from holistic_clip_hf.captioning.backend import Backend
from holistic_clip_hf.captioning.captioner import CaptioningReport, caption_images
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.patience import Patience
from holistic_clip_hf.captioning.perspectives import DEFAULT_FILE, asked, load_perspectives
from holistic_clip_hf.captioning.remote_backend import IMAGE_FORMATS, RemoteBackend, ServerError
from holistic_clip_hf.captioning.rows import FAILED
from holistic_clip_hf.captioning.store import Shard
from training.corpora.sources import add_sources

STOPPED = 130  # what a shell calls a command that Ctrl-C ended


def common_options() -> argparse.ArgumentParser:
    """What every source takes."""
    parser = argparse.ArgumentParser(add_help=False)
    asking = parser.add_argument_group("what is asked, and where the answers go")
    asking.add_argument(
        "--model", required=True, help="the captioner: on the Hub, a folder, or as the server calls it"
    )
    asking.add_argument("--output", required=True, type=Path, help="the folder for caption rows")
    asking.add_argument("--perspectives", nargs="+", default=[], help="their names; default: all that have a prompt")
    asking.add_argument("--perspectives-file", type=Path, help=f"your own prompts, in a copy of {DEFAULT_FILE}")
    asking.add_argument("--shard", default="0/1", help="i/n: the part of this process, from 0/n on; default: all")
    asking.add_argument("--retry-failed", action="store_true", help="also ask again what failed in earlier runs")
    local = parser.add_argument_group("a model on this machine")
    local.add_argument("--revision", help="its branch, tag or commit on the Hub")
    local.add_argument("--batch-size", type=int, default=8, help="images at a time; %(default)s")
    server = parser.add_argument_group("a model on a server")
    server.add_argument("--server", metavar="URL", help="its address, such as http://localhost:8000")
    server.add_argument("--token-variable", metavar="NAME", help="the environment variable that holds its token")
    server.add_argument("--concurrency", type=int, default=16, help="images at a time; %(default)s")
    server.add_argument("--timeout", type=float, default=Patience.timeout, help="seconds for an answer; %(default)g")
    server.add_argument("--attempts", type=int, default=Patience.attempts, help="to get an answer; %(default)s")
    server.add_argument(
        "--image-format", choices=sorted(IMAGE_FORMATS), default="jpeg", help="png is exact and larger"
    )
    return parser


def make_parser() -> argparse.ArgumentParser:
    """A command for each kind of source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sources(parser.add_subparsers(required=True, metavar="SOURCE"), lambda: [common_options()])
    return parser


def make_backend(options: argparse.Namespace) -> Backend:
    """Raises `ValueError` for a variable that is not set, and as the backends do."""
    if options.server is None:
        return LocalBackend(options.model, revision=options.revision, batch_size=options.batch_size)
    token = None
    if options.token_variable is not None and not (token := os.environ.get(options.token_variable)):
        raise ValueError(f"Got --token-variable {options.token_variable}, which is not set. Set it to the token.")
    return RemoteBackend(
        options.server,
        options.model,
        token=token,
        concurrency=options.concurrency,
        patience=Patience(timeout=options.timeout, attempts=options.attempts),
        image_format=options.image_format,
    )


def show(report: CaptioningReport, folder: Path) -> None:
    """What the run did, and what can be done about failures."""
    print(f"{report.images:,} images; {report.kept:,} captions were there, {report.statuses.total():,} were added:")
    for status, count in report.statuses.most_common():
        print(f"{status:12} {count:10,}")
    if report.skipped:
        print(f"{len(report.skipped):,} entries are left out; skipped.*.json in {folder} says why.")
    if report.statuses[FAILED]:
        print("To ask again what failed, add --retry-failed.")
    print(folder)


def main() -> None:
    options = make_parser().parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clusters end jobs with it: stop as on Ctrl-C
    perspectives = load_perspectives(options.perspectives_file, options.perspectives)
    source, shard = options.open_source(options), Shard.parse(options.shard)
    backend = make_backend(options)
    if not options.perspectives:
        perspectives = asked(perspectives, backend.captioner)
    try:
        report = caption_images(
            source,
            perspectives,
            backend,
            options.output,
            shard=shard,
            retry_failed=options.retry_failed,
            progress=True,
        )
    except KeyboardInterrupt:
        print(f"Stopped. What was answered is in {options.output}; the same command goes on.", file=sys.stderr)
        sys.exit(STOPPED)
    except ServerError as error:
        sys.exit(str(error))
    show(report, options.output)


if __name__ == "__main__":
    main()
