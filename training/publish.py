"""Publish a checkpoint or a corpus: `python -m training.publish runs/emoji/holistic someone/holistic-clip-emoji`.

The folder decides which of them it is. Before and after the push a checkpoint is loaded as people without the package
load it; `--dry-run` shows what would be sent, and asks nobody. The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from holistic_clip_hf.corpus.build import MANIFEST
from holistic_clip_hf.publishing.corpora import publish_corpus
from holistic_clip_hf.publishing.hub import Publication, publish
from holistic_clip_hf.publishing.remote import MAIN, Destination
from holistic_clip_hf.publishing.staging import MAX_SHARD_SIZE, facts_of


def describe(published: Publication) -> str:
    """What was sent, or would be, and where it is now."""
    lines = [f"{size:>14,}  {name}" for name, size in sorted(published.files.items())]
    lines.append(f"{sum(published.files.values()):>14,}  bytes in {len(published.files)} files")
    if published.commit is None:
        return "\n".join([*lines, f"Nothing was sent: this is what {published.repo_id} would get."])
    lines.append(f"{published.url}, commit {published.commit}")
    if published.pull_request:
        lines.append(f"Pull request: {published.pull_request}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a checkpoint, or of a corpus")
    parser.add_argument("repo_id", help="`owner/name`; without an owner, the token's")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", default=MAIN, help="the branch; a new one starts from main")
    parser.add_argument("--tag", default=None, help="set on the new commit")
    parser.add_argument("--pull-request", action="store_true", help="open one instead of committing to main")
    parser.add_argument(
        "--license", default="", help="of the weights: apache-2.0 ...; default: as card_facts.json says"
    )
    parser.add_argument("--language", default="", help="of the texts: en ...; default: likewise")
    parser.add_argument("--max-shard-size", default=MAX_SHARD_SIZE, help="larger weights are saved in several files")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent")
    options = parser.parse_args()
    is_corpus = (options.folder / MANIFEST).is_file()
    destination = Destination(
        options.repo_id,
        kind="dataset" if is_corpus else "model",
        private=options.private,
        revision=options.revision,
        tag=options.tag,
        create_pr=options.pull_request,
    )
    if is_corpus:
        print(describe(publish_corpus(options.folder, destination, dry_run=options.dry_run)))
        return
    told = {name: getattr(options, name) for name in ("license", "language") if getattr(options, name)}
    facts = replace(facts_of(options.folder, options.repo_id), **told)
    published = publish(
        options.folder, destination, facts=facts, max_shard_size=options.max_shard_size, dry_run=options.dry_run
    )
    print(describe(published))


if __name__ == "__main__":
    main()
