# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Serve the page: `python -m holistic_clip_hf.demo CHECKPOINT IMAGES`."""

import argparse
import logging
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Index what is new among the images, then serve the page until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m holistic_clip_hf.demo", description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint's directory, or its name on the Hub")
    parser.add_argument("images", help="a folder of images, or a built corpus")
    parser.add_argument("--index", default=None, help="the directory of the index; default: IMAGES.index")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: %(default)s")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        from .page import serve
    except ImportError as error:
        raise ImportError("gradio is not installed. Run: pip install 'holistic-clip-hf[demo]'") from error
    from .showcase import open_showcase

    serve(open_showcase(options.checkpoint, options.images, index=options.index), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
