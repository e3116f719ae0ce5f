# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Publish a checkpoint or a corpus on the Hub; the folder decides which of them it is.

  holistic-clip publish runs/emoji/holistic someone/holistic-clip-emoji --dry-run
  holistic-clip publish runs/emoji/holistic someone/holistic-clip-emoji --private --tag v1
  holistic-clip publish corpora/photos someone/photo-captions

Before and after the push a checkpoint is loaded as people without the package load it. --dry-run shows what would be
sent, and asks nobody. The token is that of `hf auth login`, or HF_TOKEN.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from ..publishing.hub import Publication


@dataclass(frozen=True)
class Command:
    """Publish a checkpoint or a corpus.

    Args:
        folder: Folder of a checkpoint, or of a corpus.
        repo_id: Repository as owner/name. Without an owner, the token's.
        private: Make the repository private.
        revision: Branch; a new one starts from main.
        tag: Tag that is set on the new commit.
        pull_request: Open a pull request instead of committing to main.
        license: Licence of the weights, such as apache-2.0. Default: as card_facts.json says. That of a corpus is on
            its card since it was built.
        language: Language of the texts, such as en. Default: likewise.
        max_shard_size: Size from which weights are saved in several files.
        dry_run: Show what would be sent.
    """

    folder: Positional[Path]
    repo_id: Positional[str]
    private: bool = False
    revision: str = "main"
    tag: str | None = None
    pull_request: bool = False
    license: str = ""
    language: str = ""
    max_shard_size: str = "5GB"
    dry_run: bool = False

    def __call__(self) -> None:
        """Publish, and print what was sent and where it is now.

        Raises:
            ValueError: a folder that holds neither, or what may not travel.
            PublishingError: the Hub refuses.
        """
        from ..corpus.build import MANIFEST
        from ..publishing.checkpoint import facts_of
        from ..publishing.hub import publish, publish_corpus
        from ..publishing.push import Destination

        is_corpus = (self.folder / MANIFEST).is_file()
        if is_corpus:
            self._require_no_unused_options()
        destination = Destination(
            self.repo_id,
            kind="dataset" if is_corpus else "model",
            private=self.private or None,
            revision=self.revision,
            tag=self.tag,
            create_pr=self.pull_request,
        )
        if is_corpus:
            print(describe(publish_corpus(self.folder, destination, dry_run=self.dry_run)))
            return
        told = {name: getattr(self, name) for name in ("license", "language") if getattr(self, name)}
        facts = replace(facts_of(self.folder, self.repo_id), **told)
        published = publish(
            self.folder, destination, facts=facts, max_shard_size=self.max_shard_size, dry_run=self.dry_run
        )
        print(describe(published))

    def _require_no_unused_options(self) -> None:
        """Refuse, of a corpus, what would be taken for said on its card."""
        for name, usual in (("license", ""), ("language", ""), ("max_shard_size", "5GB")):
            if (value := getattr(self, name)) != usual:
                remedy = "" if name == "max_shard_size" else f"Build it with `holistic-clip corpus --{name}`, or leave"
                raise ValueError(
                    f"`{name}` is {value}; expected none, since {self.folder} is a corpus and its card is as it was "
                    f"built. {remedy or 'Leave'} it out."
                )


def describe(published: "Publication") -> str:
    """Say what was sent, or would be, and where it is now."""
    lines = [f"{size:>14,}  {name}" for name, size in sorted(published.files.items())]
    lines.append(f"{sum(published.files.values()):>14,}  bytes in {len(published.files)} files")
    if published.commit is None:
        return "\n".join([*lines, f"Nothing was sent: this is what {published.repo_id} would get."])
    lines.append(f"{published.url}, commit {published.commit}")
    if published.pull_request:
        lines.append(f"Pull request: {published.pull_request}")
    return "\n".join(lines)
