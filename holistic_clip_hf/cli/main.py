# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""From a command line to the verb that it names. A user's mistake becomes one sentence and exit code 2."""

import errno
import importlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn

from ..stopping import Stopped, raise_stopped
from ..words import closest, shorten
from .option_names import as_options

PROGRAM, PACKAGE = "holistic-clip", "holistic_clip_hf"
MISTAKE = 2  # exit code of a usage error, as argparse has it
MOST_LETTERS = 4_000  # of an error, some of which list all that is wrong
DAMAGED = "SafetensorError"  # of a library that help does not import
# Two libraries' words for weights and states that cannot be written; torch does not say why.
NO_SPACE, UNWRITTEN = os.strerror(errno.ENOSPC), ("inline_container", "iostream error")
PEER_ENDED = "Connection closed by peer"  # as gloo says it
SHELLS = ("bash", "zsh")

# In the order of the road from images to a page. Each is a module of this package.
VERBS = {
    "caption": "ask a vision-language model about images, from several perspectives",
    "corpus": "join images and captions to a corpus, with splits and a card",
    "train": "train a run of a recipe, on one device or many",
    "finetune": "fine-tune a checkpoint on your own photos, in one command",
    "evaluate": "measure a checkpoint, print tables, keep records",
    "fit": "fit how the branches of a checkpoint become one score",
    "search": "index images and find them by perspective",
    "card": "render the card of a checkpoint from its records",
    "export": "write a checkpoint for other programs: one branch as a stock model, or ONNX",
    "publish": "push a checkpoint or a corpus to the Hub, and load it again",
    "demo": "serve a page that finds images and shows what each branch sees",
}

HELP = f"""\
usage: {PROGRAM} VERB [OPTIONS]
       {PROGRAM} VERB --help

CLIPs that read several captions per image and answer with several embeddings per image.

{{verbs}}

  --debug                     show the traceback of an error
  -V, --version               print the version
  --print-completion SHELL    print completion for {", ".join(SHELLS)}

The road, from a folder of photos to a page:

  {PROGRAM} caption folder photos --model llava-hf/llava-interleave-qwen-0.5b-hf --output captions
  {PROGRAM} corpus folder photos --rows captions --output corpus
  {PROGRAM} train --recipe recipe.yaml --run holistic --corpus corpus
  {PROGRAM} search index photos --model runs/recipe/holistic --index photos.index
  {PROGRAM} demo runs/recipe/holistic photos
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the verb that the command line names, or print help.

    Raises:
        SystemExit: the command line or what it names is wrong (2), or the verb was stopped by Ctrl-C (130) or
            SIGTERM (143).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [each for each in given if each != "--debug"]
    with end_in_a_sentence(" ".join([PROGRAM, *given[:1]]), given, debug=debug):
        dispatch(given)


@contextmanager
def end_in_a_sentence(program: str, given: Sequence[str] = (), *, debug: bool = False) -> Iterator[None]:
    """Run a command so that a user's mistake, a signal or a closed pipe ends it in one sentence.

    Args:
        program: Name of the command in the sentence.
        given: Command line, by whose verb the sentence names options.
        debug: Show the traceback instead.

    Raises:
        SystemExit: a mistake (2), Ctrl-C (130) or SIGTERM (143).
    """
    # Clusters end jobs with SIGTERM: stop as on Ctrl-C, so that uploads and scratch files are removed.
    signal.signal(signal.SIGTERM, raise_stopped)
    try:
        with log_to_stderr():
            yield
    except KeyboardInterrupt as stop:
        if debug:
            raise
        stopped = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        said = str(stopped) or "stopped. Give the same command again to go on."
        print(f"\n{program}: {said}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug or not is_mistake(error):
            raise
        close_progress_bars()
        refuse(f"{program}: {as_options(sentence_of(error), given)}")


class LinesAboveBars(logging.StreamHandler):
    """Handler that gives what is logged a line of its own, above the bars of progress that are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, as inherited."""
        if "tqdm.std" not in sys.modules:  # it is imported only where a bar is shown
            super().emit(record)
            return
        with sys.modules["tqdm.std"].tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Show what this package logs. Other packages have handlers of their own, so the root gets none: they would say
    everything twice."""
    handler, logger = LinesAboveBars(), logging.getLogger(PACKAGE)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def dispatch(given: Sequence[str]) -> None:
    """Answer what needs no verb, else parse the verb's options and run it."""
    if given and given[0] == "help" and len(given) > 1:
        given = [*given[1:], "--help"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:10} {summary}" for verb, summary in VERBS.items())))
    elif given[0] in ("-V", "--version"):
        from .. import __version__

        print(__version__)
    elif given[0] == "--print-completion":
        print_completion(given[1:])
    elif given[0] in VERBS:
        parse(given[0], given[1:])()
    else:
        refuse(f"{PROGRAM}: the verb is {given[0]!r}; expected one of {', '.join(VERBS)}.{_hint(given[0], VERBS)}")


def _hint(word: str, valid: Iterable[str]) -> str:
    near = closest(word, valid)
    return f" Did you mean {near!r}?" if near else ""


def parse(verb: str, given: Sequence[str]) -> Any:
    """Read the options of a verb. Calling what is returned does the work.

    Raises:
        SystemExit: help was asked for (0), or an option is wrong (2).
    """
    import tyro

    from .help import describe, kinds_of, repeatable, retitle, with_examples

    module, program = importlib.import_module(f".{verb}", __package__), f"{PROGRAM} {verb}"
    kinds = kinds_of(module.Command)
    require_kind(program, given, kinds)
    require_once(program, given, repeatable(module.Command))
    told, shown = Captured(), Captured()
    shown.encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    try:
        # Boxes are drawn by the encoding of the output, and a usage error is read by their lines.
        with redirect_stderr(told), redirect_stdout(told if not {"-h", "--help"} & set(given) else shown):
            return tyro.cli(
                describe(module.Command),
                prog=program,
                description=module.__doc__,
                args=list(given),
                config=options_style(),
            )
    except SystemExit as ended:
        place = " ".join([program, *given[:1]]) if given[:1] and given[0] in kinds else program
        if ended.code != MISTAKE:
            text = retitle(shown.getvalue())
            print(text if place == program else with_examples(text, module.__doc__ or "", place), end="")
            raise
        sentence = as_options(sentence_of_usage(told.getvalue(), given), [verb, *given])
        # A refusal of ours, made while the options became a dataclass, names its own.
        sentence = re.sub(r"Error parsing [\w.]+: (?=`)", "", sentence)
        if verb == "train" and "unknown" in sentence:
            sentence += " Settings of the training stand in the recipe, under `training`."
        refuse(f"{program}: {sentence} See `{place} --help`.")


class Captured(io.StringIO):
    """Text that is printed, with the encoding that its printer believes in."""

    encoding = "utf-8"


def require_kind(program: str, given: Sequence[str], kinds: Sequence[str]) -> None:
    """Refuse a command line without one of the words that say what kind of source or action is meant.

    Raises:
        SystemExit: it has none of them (2).
    """
    if not kinds or set(given) & {*kinds, "-h", "--help"}:
        return
    words = [word for word in given[:1] if not word.startswith("-")]
    hint = "".join(_hint(word, kinds) for word in words) or f" Write, for example, `{program} {kinds[0]} ...`."
    got = f"is {words[0]!r}" if words else "is missing"
    refuse(f"{program}: the first word {got}; expected one of {', '.join(kinds)}.{hint}")


def require_once(program: str, given: Sequence[str], repeated: Collection[str]) -> None:
    """Refuse an option that is given twice, of which the first would not count.

    Raises:
        SystemExit: an option is given twice (2).
    """
    names = [word.partition("=")[0].replace("_", "-") for word in given if re.match(r"--[a-z]", word)]
    for name in names:
        if names.count(name) > 1 and name not in repeated:
            count = names.count(name)
            refuse(f"{program}: `{name}` is given {count} times; expected once. Put all values behind one.")


def sentence_of_usage(box: str, given: Sequence[str] = ()) -> str:
    """Return what the option parser says in its box as one sentence, without the help of the options it names."""
    missing: list[str] = []
    told: list[str] = []
    for line in box.splitlines()[1:]:  # the first is a heading
        text = re.sub(r"^[│|] ?", "", line).rstrip("│|╭╮╰╯─-").rstrip()
        if text.startswith(("For full helptext", "Argument helptext")):
            break
        is_of_missing = text.startswith("    ") and bool(missing or told) and (told or [""])[-1].startswith("Missing")
        if text.strip(" ─") and not text.startswith(" " * 8):
            (missing if is_of_missing else told).append(text.strip())
    sentence = " ".join(each for each in told if not each.startswith("Missing from")).rstrip(".")
    sentence = re.sub(r" ?Unrecognized options: ?", "; unknown ", sentence)
    sentence = re.sub(r" Perhaps you meant: (.*)", r". Perhaps you meant one of \1", sentence)
    if re.search(r"; unknown [^-]", sentence) and "find" in given:
        sentence += ", put the whole query in quotes"
    return f"{'missing ' + ', '.join(missing) if missing else ''}{sentence}".lstrip("; ") + "."


def options_style() -> tuple[Any, ...]:
    """Return how options are spelled: short, after subcommands too, with `-` or `_` as the Trainer's are."""
    from tyro import conf

    return (conf.OmitArgPrefixes, conf.OmitSubcommandPrefixes, conf.CascadeSubcommandArgs)


def print_completion(given: Sequence[str]) -> None:
    """Print a shell's script that completes verbs and options."""
    if list(given) not in [[shell] for shell in SHELLS]:
        refuse(f"{PROGRAM}: --print-completion is {' '.join(given)!r}; expected one of {', '.join(SHELLS)}.")
    from functools import reduce
    from operator import or_
    from typing import Annotated

    import tyro

    commands = [
        Annotated[
            importlib.import_module(f".{verb}", __package__).Command, tyro.conf.subcommand(verb, prefix_name=False)
        ]
        for verb in VERBS
    ]
    command: Any = reduce(or_, commands)
    tyro.cli(command, prog=PROGRAM, args=["--tyro-print-completion", given[0]], config=options_style())


def is_mistake(error: Exception) -> bool:
    """Tell what a user can mend from a fault of the program.

    Refusals are ValueErrors, what the system or the Hub refuses is an OSError, and a missing extra an ImportError.
    The package's own exceptions say themselves what to do.
    """
    is_ours = type(error).__module__.startswith(PACKAGE)
    is_refusal = isinstance(error, ValueError | OSError | ImportError | RecursionError)
    is_known = any(words in str(error) for words in (PEER_ENDED, *UNWRITTEN))
    return is_refusal or is_ours or is_known or type(error).__name__ == DAMAGED


def sentence_of(error: Exception) -> str:
    """Return the error's text on one line, without its middle if it is long, or its kind if it has none."""
    text = shorten(" ".join(str(error).split()) or type(error).__name__, MOST_LETTERS)
    if isinstance(error, RecursionError):
        return f"A file is nested deeper than can be read ({text}); expected one that is not damaged. Get it again."
    if PEER_ENDED in text:
        return f"Another process of this run has ended ({PEER_ENDED}). Read what it said, and start all of them again."
    if type(error).__name__ == DAMAGED and NO_SPACE not in text:
        return f"A file of weights is damaged ({text}). Get it again."
    if type(error).__name__ == DAMAGED or any(words in text for words in UNWRITTEN):
        return f"A file cannot be written, most likely since the disk is full ({text}). Free space and run again."
    return text


def close_progress_bars() -> None:
    """End the lines of progress bars, so that a sentence gets a line of its own."""
    if "tqdm.std" in sys.modules:  # it is imported only where a bar is shown
        for bar in list(sys.modules["tqdm.std"].tqdm._instances):
            bar.close()


def refuse(sentence: str) -> NoReturn:
    """End with a sentence on standard error."""
    print(sentence, file=sys.stderr)
    sys.exit(MISTAKE)
