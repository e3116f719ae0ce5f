# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of the command's options for the parameters of Python that a refusal names."""

import re
from collections.abc import Sequence

# By verb, parameters whose option has another name than theirs, or no name but a place.
_OTHERS = {
    "caption": {"url": "--server", "names": "--perspectives", "path": "--perspectives-file", "folder": "--output"},
    "corpus": {"threshold": "--drop-similar", "columns": "--caption"},
    "finetune": {"columns": "--caption", "listing": "--captions", "root": "PHOTOS"},
    "card": {"checkpoint": "PATH", "path": "PATH"},
    "publish": {"checkpoint": "PATH", "corpus": "PATH", "repo_id": "STR"},
}
_SOURCES = {"listing": "PATH", "paths": "PATH", "columns": "--caption", "positions": "--positions"}
# By verb, parameters whose option is named after them.
_SAME = {
    "caption": (
        "output model perspectives perspectives_file shard chat_template_kwargs revision batch_size token_variable "
        "concurrency timeout attempts image_format max_side max_bytes extra_body image_column encoding"
    ),
    "corpus": (
        "output rows perspectives max_caption_bytes drop_similar embed validation test report replace rows_per_shard "
        "workers min_side max_side max_pixels max_bytes image_column id_column from_split encoding"
    ),
    "finetune": "base output captions caption image_column encoding rows validation test max_length",
    "train": "recipe run corpus output_dir",
    "fit": "model corpus split_column split output replace",
    "card": "",
    "demo": "edit_captions allow_host port write_space",
    "export": "layout output branch int8 verify_images index node_modules half",
    "publish": "private revision tag license language max_shard_size",
}


def as_options(sentence: str, given: Sequence[str]) -> str:
    """Return a refusal with the names of the options of the verb, which `given` begins with.

    >>> as_options("`url` is 'x'; expected an address.", ["caption", "folder", "photos"])
    "`--server` is 'x'; expected an address."
    """
    verb, kind = [*given, "", ""][:2]
    names = {name: f"--{name.replace('_', '-')}" for name in _SAME.get(verb, "").split()} | _OTHERS.get(verb, {})
    if verb in ("caption", "corpus"):
        names |= _SOURCES | {"root": "PATH" if kind == "folder" else "--root"}
    return re.sub(r"`(\w+)`", lambda found: f"`{names.get(found[1], found[1])}`", sentence)
