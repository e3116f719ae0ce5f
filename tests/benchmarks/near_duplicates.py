"""Near-duplicates: planted copies that are found, images that are alarmed of falsely, and time and memory at scale.

    python tests/benchmarks/near_duplicates.py emoji photos clipart    # folders or corpora of the cache
    python tests/benchmarks/near_duplicates.py emoji --scale 1000000   # adds the look for groups of a million

A thousand images are copied: to half to double of the side by smooth filters, as JPEG of quality 40 to 95, mirrored,
or all of these at once. A copy is found if it is in the group of its original, and is a false alarm if an image is in
it that is not grouped with the original without copies. phash of 64 and 256 bits (`imagehash`, if installed) is given
the distance at which it finds 99 % of the copies: how many copies then have a stranger so near? A large set is made of
blends of two thumbnails each, its peak memory has the thumbnails in it. Writes results/near_duplicates.json.
"""

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _measure import MEBIBYTE, _resident, write_record
from PIL import Image, ImageOps

from holistic_clip_hf.cli.search import open_images
from holistic_clip_hf.images.decoding import UnreadableImageError, read_image
from holistic_clip_hf.images.likeness import find_groups, make_thumbnail, read_thumbnail
from holistic_clip_hf.images.sources import Item
from holistic_clip_hf.processing_holistic_clip import on_background

NUM_COPIES, SHARE_FOUND = 1_000, 0.99
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
SEED = 1  # the limits were chosen on copies of seed 0
KINDS = ("resized", "recompressed", "mirrored", "all")


def read_all(places: list[str]) -> Iterator[tuple[str, bytes]]:
    for place in places:
        images = open_images(place, [])
        for item in images.items():
            if isinstance(item, Item):
                yield f"{place}/{item.image_id}", images.read(item.place)


def copy(data: bytes, kind: str, draw: random.Random) -> bytes:
    image, file = on_background(read_image(data)), io.BytesIO()
    if kind in ("resized", "all"):
        share = draw.uniform(0.5, 2.0)
        size = tuple(max(1, round(side * share)) for side in image.size)
        image = image.resize(size, draw.choice(FILTERS))
    if kind in ("mirrored", "all"):
        image = ImageOps.mirror(image)
    if kind in ("recompressed", "all"):
        image.save(file, "JPEG", quality=draw.randint(40, 95))
    else:
        image.save(file, "PNG")
    return file.getvalue()


def groups_by_row(thumbnails: np.ndarray) -> dict[int, frozenset[int]]:
    found: dict[int, frozenset[int]] = {}
    for group in find_groups(thumbnails):
        found |= dict.fromkeys(group.tolist(), frozenset(group.tolist()))
    return found


def judge(
    originals: np.ndarray, alone: dict[int, frozenset[int]], copies: np.ndarray, chosen: list[int]
) -> dict[str, int]:
    """Number of copies that are found, and of those in whose group a stranger is."""
    count = len(originals)
    both = groups_by_row(np.concatenate([originals, copies]))
    friends = {row: alone.get(row, frozenset([row])) for row in chosen}
    found = wrong = 0
    for number, row in enumerate(chosen):
        group = both.get(count + number, frozenset())
        found += row in group
        wrong += any(each not in friends[row] for each in group if each < count)
    return {"copies": len(chosen), "found": found, "false_alarms": wrong}


def judge_phash(kept: list[bytes], copies: list[bytes], chosen: list[int], side: int) -> dict[str, float]:
    """Nearest stranger by phash, compared with the copy as it is and mirrored, at the distance that finds 99 %."""
    import imagehash

    def bits(data: bytes, mirror: bool = False) -> np.ndarray:
        image = on_background(read_image(data))
        return imagehash.phash(ImageOps.mirror(image) if mirror else image, hash_size=side).hash.ravel()

    known = np.stack([bits(data) for data in kept]).astype(np.float32)
    distances = []
    for mirror in (False, True):
        asked = np.stack([bits(data, mirror) for data in copies]).astype(np.float32)
        distances.append(asked.sum(axis=1)[:, None] + known.sum(axis=1) - 2 * asked @ known.T)
    nearest = np.minimum(*distances)
    own = nearest[np.arange(len(chosen)), chosen]
    limit = float(np.quantile(own, SHARE_FOUND))
    nearest[np.arange(len(chosen)), chosen] = np.inf
    strangers = (nearest <= limit).sum(axis=1)
    return {
        "bits": side**2,
        "distance_that_finds_99_percent": limit,
        "largest_distance_of_a_copy": float(own.max()),
        "copies_with_another_image_so_near": int((strangers > 0).sum()),
        "other_images_so_near": int(strangers.sum()),
    }


def measure_scale(thumbnails: np.ndarray, count: int) -> dict[str, float]:
    generator = np.random.default_rng(0)
    many = np.empty((count, *thumbnails.shape[1:]), np.uint8)
    for start in range(0, count, 10_000):
        some = many[start : start + 10_000]
        first, second = (thumbnails[generator.integers(0, len(thumbnails), len(some))] for _ in range(2))
        share = generator.uniform(0.2, 0.8, (len(some), 1, 1, 1)).astype(np.float32)
        some[:] = share * first + (1 - share) * second
    planted = generator.choice(count, (2, count // 100), replace=False)
    many[planted[1]] = np.clip(many[planted[0]].astype(int) + generator.integers(-3, 4, (1, 1, 1, 3)), 0, 255)[
        :, :, ::-1
    ]
    Path("/proc/self/clear_refs").write_text("5")
    start_time = time.perf_counter()
    found = find_groups(many, progress=True)
    seconds = time.perf_counter() - start_time
    same = np.arange(count)
    for group in found:
        same[group] = group[0]
    return {
        "images": count,
        "seconds": round(seconds),
        "peak_mib": round(_resident("VmHWM") / MEBIBYTE),
        "planted": planted.shape[1],
        "planted_found": int((same[planted[0]] == same[planted[1]]).sum()),
        "groups": len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--scale", type=int, default=0)
    options = parser.parse_args()
    names, kept, thumbnails, start = [], [], [], time.perf_counter()
    for name, data in read_all(options.images):
        try:
            thumbnails.append(read_thumbnail(data))
        except UnreadableImageError:
            continue
        names.append(name)
        kept.append(data)
    record: dict[str, object] = {"seed_of_copies": SEED, "images": len(names)}
    record["seconds_of_thumbnails"] = round(time.perf_counter() - start, 1)
    originals, draw = np.stack(thumbnails), random.Random(SEED)
    chosen = draw.sample(range(len(names)), NUM_COPIES)
    kinds = [KINDS[number % len(KINDS)] for number in range(NUM_COPIES)]
    copies = [copy(kept[row], kind, draw) for row, kind in zip(chosen, kinds, strict=True)]
    thumbs = np.stack([make_thumbnail(read_image(data)) for data in copies])
    alone = groups_by_row(originals)
    record |= {"images_in_groups": len(alone), "groups": len(set(alone.values()))}
    record["all_copies"] = judge(originals, alone, thumbs, chosen)
    for kind in KINDS:
        some = [number for number, each in enumerate(kinds) if each == kind]
        record[kind] = judge(originals, alone, thumbs[some], [chosen[number] for number in some])
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
    try:
        record["phash"] = [judge_phash(kept, copies, chosen, side) for side in (8, 16)]
    except ImportError:
        record["phash"] = "imagehash is not installed"
    if options.scale:
        record["scale"] = measure_scale(originals, options.scale)
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
    write_record("near_duplicates", record)


if __name__ == "__main__":
    main()
