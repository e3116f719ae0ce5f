"""Near-duplicates: what survives resizing, recompression and mirroring, and that no near pair is overlooked."""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from holistic_clip_hf.images import likeness
from holistic_clip_hf.images.decoding import UnreadableImageError
from holistic_clip_hf.images.likeness import SIDE, are_alike, find_groups, make_thumbnail, read_thumbnail


def picture(seed: int, side: int = 200) -> Image.Image:
    """Coloured shapes on a ground, another for each seed."""
    draw = random.Random(seed)
    image = Image.new("RGB", (side, side), tuple(draw.choices(range(120, 256), k=3)))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = draw.randrange(side - 40), draw.randrange(side - 40)
        box = (left, top, left + draw.randrange(20, 100), top + draw.randrange(20, 100))
        draw.choice([pen.rectangle, pen.ellipse])(box, fill=tuple(draw.choices(range(256), k=3)))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half": lambda image: encoded(image.resize((100, 100))),
    "double": lambda image: encoded(image.resize((400, 400), Image.Resampling.BICUBIC)),
    "recompressed": lambda image: encoded(image, "JPEG", quality=40),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
    "all": lambda image: encoded(ImageOps.mirror(image.resize((120, 120))), "JPEG", quality=50),
    "squeezed": lambda image: encoded(image.resize((200, 150))),
    "transparent": lambda image: encoded(image.convert("RGBA")),
}


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(are_alike(first[None], second[None])[0])


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_known_and_other_pictures_are_not(name: str) -> None:
    originals = [read_thumbnail(encoded(picture(seed))) for seed in range(20)]
    copies = [read_thumbnail(COPIES[name](picture(seed))) for seed in range(20)]
    for number, copy in enumerate(copies):
        assert [alike(each, copy) for each in originals] == [other == number for other in range(20)]


def test_another_colour_or_a_small_change_is_another_picture() -> None:
    image = picture(0)
    changed = image.copy()
    ImageDraw.Draw(changed).rectangle((90, 90, 130, 130), fill="black")
    channels = image.split()
    recoloured = Image.merge("RGB", (channels[2], channels[1], channels[0]))
    for other in (changed, recoloured):
        assert not alike(make_thumbnail(image), make_thumbnail(other))


def test_what_is_transparent_is_seen_on_white() -> None:
    drawn = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(drawn).ellipse((8, 8, 40, 40), fill="red")
    page = Image.new("RGB", (64, 64), "white")
    page.paste(drawn, mask=drawn.getchannel("A"))
    assert np.array_equal(make_thumbnail(drawn), make_thumbnail(page))


def test_a_large_photo_decoded_at_a_part_of_its_side_has_the_same_thumbnail() -> None:
    photo = picture(3).resize((2000, 2000), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=90)
    difference = read_thumbnail(data).astype(int) - make_thumbnail(Image.open(io.BytesIO(data)))
    assert np.abs(difference).max() <= 6


def test_what_is_not_an_image_has_no_thumbnail() -> None:
    for data in (b"", b"text", encoded(picture(0))[:300]):
        with pytest.raises(UnreadableImageError):
            read_thumbnail(data)


def clustered(seed: int, num_clusters: int, of_each: int) -> np.ndarray:
    """Thumbnails around some, near the limit of likeness, some of them mirrored or the same."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(num_clusters):
        low = generator.uniform(20, 235, (4, 4, 3))
        centre = np.kron(low, np.ones((SIDE // 4, SIDE // 4, 1)))
        for _ in range(of_each):
            near = centre + generator.normal(0, generator.choice([0, 1, 3, 6]), centre.shape)
            found.append(np.clip(near[:, :: generator.choice([1, -1])], 0, 255).astype(np.uint8))
    return generator.permutation(np.stack(found))


def plain_groups(thumbnails: np.ndarray) -> list[list[int]]:
    """By looking at all pairs, one after the other."""
    sets = [{row} for row in range(len(thumbnails))]
    for one in range(len(thumbnails)):
        for other in range(one):
            if alike(thumbnails[one], thumbnails[other]) and sets[one] is not sets[other]:
                both = sets[one] | sets[other]
                for row in both:
                    sets[row] = both
    return sorted({tuple(sorted(each)) for each in sets if len(each) > 1})


@pytest.mark.parametrize("leaf", [3, 17, 256])
def test_groups_are_those_of_a_look_at_all_pairs(leaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_LEAF", leaf)
    monkeypatch.setattr(likeness, "_AT_ONCE", 5)
    thumbnails = clustered(leaf, 12, 8)
    expected = plain_groups(thumbnails)
    assert len(expected) > 8 and any(len(each) < 8 for each in expected)
    assert [tuple(group.tolist()) for group in find_groups(thumbnails)] == expected


def test_cosines_never_differ_more_than_pixels() -> None:
    """Or a near pair would be overlooked."""
    pairs = np.random.default_rng(0).integers(0, 256, (200, 2, SIDE, SIDE, 3))
    pairs[100:, 1] = np.clip(pairs[100:, 0] + 3, 0, 255)
    cosines = pairs.reshape(200, 2, -1) @ likeness._BASIS
    squares = ((pairs[:, 0] - pairs[:, 1]) * np.array([1, 0.5, 0.5])) ** 2
    whole = np.sqrt(squares.sum(axis=-1).mean(axis=(1, 2)))
    assert (np.linalg.norm(cosines[:, 0] - cosines[:, 1], axis=1) <= whole + 1e-3).all()
    mirrored = pairs[:, :, :, ::-1].reshape(200, 2, -1) @ likeness._BASIS
    np.testing.assert_allclose(mirrored, cosines * likeness._MIRROR, atol=1e-2)


def test_no_images_have_no_groups() -> None:
    assert find_groups(np.zeros((0, SIDE, SIDE, 3), np.uint8)) == []
    assert [group.tolist() for group in find_groups(np.zeros((3, SIDE, SIDE, 3), np.uint8))] == [[0, 1, 2]]
