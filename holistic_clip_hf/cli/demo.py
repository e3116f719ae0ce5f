# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Serve a page that finds images by perspective and shows what each branch sees.

  holistic-clip demo runs/emoji/holistic photos
  holistic-clip demo me/holistic-clip-photos corpora/photos --port 7861

Images are indexed first, into IMAGES.index unless --index says otherwise. A second start indexes only what is new.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Command:
    """Serve the page until it is stopped.

    Args:
        checkpoint: Folder of a checkpoint, or its name on the Hub.
        images: Folder of images, or a built corpus.
        index: Folder of the index. Default: IMAGES.index.
        host: Address to listen on. 0.0.0.0 lets other machines in.
        port: Port to listen on. Default: the first free one from 7860.
    """

    checkpoint: Positional[str]
    images: Positional[Path]
    index: Path | None = None
    host: str = "127.0.0.1"
    port: int | None = None

    def __call__(self) -> None:
        """Index what is new among the images, then serve.

        Raises:
            ImportError: gradio is not installed.
            ValueError: no such checkpoint or folder, or an index of another checkpoint.
        """
        from ..demo.page import serve
        from ..demo.showcase import open_showcase

        serve(open_showcase(self.checkpoint, self.images, index=self.index), host=self.host, port=self.port)
