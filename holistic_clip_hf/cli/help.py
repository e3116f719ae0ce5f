# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Help of a verb, told once for all verbs: names of values, defaults, headings, and which options may be repeated.

The option parser reads dataclasses. Left alone it says `{None}|STR`, "(default: None)" behind a default that the text
tells in words, and names groups of options by their fields.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

LAST_LINE = "Add --debug to see the traceback of an error."
# Headings, by the names that the parser makes of the fields which hold a group of options.
HEADINGS = {
    "options": "options of the build",
    "options.limits": "limits of images",
    "card": "facts for the card",
    "texts": "options of retrieval and branches",
    "labels": "options of classification and probes",
    "pixels": "options of segmentation",
    "questions": "options of cases",
    "local": "options of a model on this machine",
    "remote": "options of a model behind a server",
    "settings": "settings of the training",
}
# By how their text begins, what the values of an option are.
KINDS = {
    "Folder of a checkpoint": "CHECKPOINT",
    "Folder of the checkpoint": "CHECKPOINT",
    "Folder of images": "IMAGES",
    "Folder of a corpus": "CORPUS",
    "Folder": "FOLDER",
    "File": "FILE",
    "PNG file": "FILE",
    "YAML file": "FILE",
    "Example image": "IMAGE",
    "Repository": "REPO",
    "JSON object": "JSON",
    "Columns and the values": "COLUMN=VALUE",
    "Benchmark as": "NAME=FOLDER",
    "Perspective or column": "NAME",
    "sentence-transformers model": "MODEL",
}


def _extras(hint: Any) -> tuple[Any, ...]:
    return tuple(getattr(hint, "__metadata__", ()))


@cache
def describe(command: Any) -> Any:
    """Annotate the options of a verb, once, with the names of their values and without defaults that say nothing."""
    for kind in _dataclasses_in(command):
        hints, told = typing.get_type_hints(kind, include_extras=True), _entries(kind)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            if not list(_dataclasses_in(hint)) and not any(isinstance(each, type(arg())) for each in _extras(hint)):
                kind.__annotations__[field.name] = _annotated(field, hint, told.get(field.name, ""))
    return command


APPENDED = _extras(UseAppendAction[tuple[str, ...]])[0]  # marker of options that are given once for each value


def repeatable(command: Any) -> set[str]:
    """Return the options that may be given several times, as `--rows`."""
    return {
        f"--{field.name.replace('_', '-')}"
        for kind in _dataclasses_in(command)
        for field in dataclasses.fields(kind)
        if APPENDED in _extras(typing.get_type_hints(kind, include_extras=True)[field.name])
    }


def kinds_of(command: Any) -> list[str]:
    """Return the names of a verb's subcommands, of which one is needed."""
    hints = [command]
    if isinstance(command, type):
        hints = list(typing.get_type_hints(command, include_extras=True).values())
    extras = [extra for hint in hints for part in typing.get_args(hint) for extra in _extras(part)]
    return [each.name for each in extras if isinstance(getattr(each, "name", None), str)]


def with_examples(text: str, examples: str, program: str) -> str:
    """Return the help of a subcommand with those lines of its verb's examples that use it, or else with the first."""
    found = re.findall(r"^  holistic-clip .*(?:\\\n.*)*", examples, re.MULTILINE)
    fitting = [each for each in found if each.strip().startswith(f"{program} ")] or found[:1]
    usage, _, rest = text.partition("\n\n")
    summary, _, rest = rest.partition("\n\n")
    return "\n\n".join([usage, summary, "\n".join(fitting), rest])


def retitle(text: str) -> str:
    """Return a help with headings for people, and the last line that holds for all verbs."""
    lines = []
    for line in text.rstrip().split("\n"):
        found = re.match(r"(╭─)? (\S+) options ( *|─+╮)$", line)
        if found and found[2] in HEADINGS and found[1]:
            line = f"╭─ {HEADINGS[found[2]]} ".ljust(len(line) - 1, "─") + "╮"
        elif found and found[2] in HEADINGS:  # where the terminal knows ASCII only
            line = f" {HEADINGS[found[2]]}"
        lines.append(line)
    return "\n".join([*lines, "", LAST_LINE, ""])


def _annotated(field: "dataclasses.Field[Any]", hint: Any, text: str) -> Any:
    default = field.default
    # A flag that is on has a pair, as --report and --no-report; one that is off has only itself.
    if default is False:
        alone: Any = FlagCreatePairsOff
        hint = alone[hint]
    says_nothing = default in (None, "", ()) or default is False or "Default:" in text
    options: dict[str, Any] = {"help_behavior_hint": ""} if says_nothing else {}
    if APPENDED in _extras(hint):
        options["help_behavior_hint"] = "(repeatable)"
    elif default is dataclasses.MISSING:
        options["help_behavior_hint"] = "(one or more)"  # the parser says so of one value only, as "(required)"
    if metavar := _metavar(field, hint, text):
        options["metavar"] = metavar
    return Annotated[hint, arg(**options)] if options else hint


def _metavar(field: "dataclasses.Field[Any]", hint: Any, text: str) -> str:
    """Return the name of an option's values, or nothing for flags, choices and what the parser names well."""
    plain = typing.get_args(hint)[0] if _extras(hint) else hint
    several = typing.get_origin(plain) is tuple
    parts = typing.get_args(plain) if several or isinstance(plain, UnionType) else (plain,)
    kinds = {part for part in parts if part not in (NoneType, Ellipsis)}
    if len(kinds) != 1 or not kinds <= {str, int, float, Path}:
        return ""
    (kind,) = kinds
    name = next((name for begin, name in KINDS.items() if text.startswith(begin)), "")
    if not name:
        word = field.name.removesuffix("s" if several else "").upper().rpartition("_")[2]
        name = word if kind in (str, Path) else kind.__name__.upper()
    return f"{name} ..." if several and APPENDED not in _extras(hint) else name


def _dataclasses_in(hint: Any) -> Iterator[Any]:
    """Yield the dataclasses of a type, and of their fields."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
        hints = typing.get_type_hints(hint, include_extras=True)
        for field in dataclasses.fields(hint):
            yield from _dataclasses_in(hints[field.name])
    for part in typing.get_args(hint):
        yield from _dataclasses_in(part)


def _entries(kind: type) -> dict[str, str]:
    """Return the texts of a dataclass's options, by their names."""
    found = re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
