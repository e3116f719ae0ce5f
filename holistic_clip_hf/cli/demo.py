# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Serve a page that finds images by perspective and shows what each branch sees.

  holistic-clip demo runs/emoji/holistic photos
  holistic-clip demo me/holistic-clip-photos corpora/photos --port 7861
  holistic-clip demo runs/emoji/holistic photos --edit-captions captions.jsonl
  holistic-clip demo me/holistic-clip-photos photos --write-space space

Images are indexed first, into IMAGES.index unless --index says otherwise. A second start indexes only what is new.
Beside the page, the server answers programs: /v1/embeddings, /v1/models and /search.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional, UseAppendAction

MOST_PORTS = 65_535


@dataclass(frozen=True)
class Command:
    """Serve the page until it is stopped.

    Args:
        checkpoint: Folder of a checkpoint, or its name on the Hub.
        images: Folder of images, or a built corpus.
        index: Folder of the index, which is brought up to date. Default: IMAGES.index.
        replace: Permission to replace an index of other images.
        host: Address to listen on. 0.0.0.0 lets other machines in.
        allow_host: Further name that the page is served under, such as that of a proxy before it.
        edit_captions: JSON-lines file in which captions that visitors correct are saved. Default: nobody can.
        follow_links: Follow links in a folder of images, wherever they lead.
        port: Port to listen on. Default: the first free one from 7860.
        write_space: Folder to write a Space into, new or empty, instead of serving. It gets copies of images and index
            and, if that is a folder, of the checkpoint.
    """

    checkpoint: Positional[str]
    images: Positional[Path]
    index: Path | None = None
    replace: bool = False
    host: str = "127.0.0.1"
    port: int | None = None
    allow_host: UseAppendAction[tuple[str, ...]] = ()
    edit_captions: Path | None = None
    follow_links: bool = False
    write_space: Path | None = None

    def __call__(self) -> None:
        """Index what is new among the images, then serve, or write a Space.

        Raises:
            ImportError: gradio is not installed.
            ValueError: no such checkpoint or folder, an index of another checkpoint, an address that is not free, or
                a file for captions that cannot be one.
        """
        # Before minutes of indexing.
        require_address(self.host, self.port)
        if self.write_space is not None:
            self._require_space_options(self.write_space)
        from ..demo.page import serve
        from ..demo.showcase import open_showcase

        showcase = open_showcase(
            self.checkpoint,
            self.images,
            index=self.index,
            replace=self.replace,
            edit_captions=self.edit_captions,
            follow_links=self.follow_links,
        )
        if self.write_space is None:
            serve(showcase, host=self.host, port=self.port, allow_hosts=self.allow_host)
            return
        from ..demo.space import write_space

        space = write_space(showcase, self.checkpoint, self.images, self.write_space)
        print(f"{self.write_space} holds a Space of {space.num_images:,} images, {space.num_bytes / 1e6:,.1f} MB.")
        if space.num_left_out:
            print(f"Left out: {space.num_left_out:,} images that cannot be read.")
        print(f"Push it with `hf upload OWNER/NAME {self.write_space} --repo-type space`.")

    def _require_space_options(self, folder: Path) -> None:
        """Refuse a folder that holds anything, and options that a Space would not have."""
        from ..storage import require_apart, require_own_folder

        require_own_folder(folder, lambda path: False, holds="a Space")
        require_apart(folder, self.images, walked=True)
        for name in ("edit_captions", "allow_host", "port"):
            if value := getattr(self, name):
                raise ValueError(
                    f"`{name}` is {value} beside `write_space`; expected one of the two. A Space has captions that "
                    "stay, and a name and a port of its own. Leave one out."
                )


def require_address(host: str, port: int | None) -> None:
    """Refuse an address on which nothing can listen.

    Args:
        host: Address or name of this machine.
        port: Port; without one, some port will be free.

    Raises:
        ValueError: no such port or host, or the port is taken.
    """
    if port is not None and not 1 <= port <= MOST_PORTS:
        raise ValueError(f"`--port` is {port}; expected 1 to {MOST_PORTS}. Choose one from 1024.")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(
            f"`--host` is {host}, which has no address ({error.strerror}); expected one of this machine. Leave it "
            "out, or give 0.0.0.0 to let other machines in."
        ) from error
    try:
        with socket.socket(kind, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, after one that has just ended
            tried.bind(address)
    except OSError as error:
        raise ValueError(
            f"`--host` and `--port` are {host} and {port}, where nothing can listen ({error.strerror}); expected a "
            "free port of this machine. Choose another, or leave --port out."
        ) from error
