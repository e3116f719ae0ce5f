"""Drawings that are alike: the same one in another size and brightness, another one, and a blank one."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.emoji.duplicates import thumbnails


def drawing(side: int, light: int, box: tuple[float, float, float, float]) -> Image.Image:
    image = Image.new("RGB", (side, side), (light, light, light))
    ImageDraw.Draw(image).rectangle([share * side for share in box], fill=(light // 2, 0, 0))
    return image


def test_alike_is_what_differs_by_size_and_light_alone() -> None:
    box, other = (0.25, 0.25, 0.5, 0.75), (0.6, 0.1, 0.9, 0.3)
    images = [drawing(64, 240, box), drawing(128, 200, box), drawing(64, 240, other), Image.new("RGB", (9, 9), "red")]
    same, again, different, blank = thumbnails(images)
    assert same @ again > 0.99 and same @ different < 0.6
    assert np.linalg.norm(same) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(thumbnails([Image.new("RGB", (9, 9), "gray")])) == 0
    # Mean and length by numpy, of a picture as small as a thumbnail.
    small = drawing(16, 100, box)
    flat = np.asarray(small).astype(float).ravel()
    np.testing.assert_allclose(
        thumbnails([small])[0], (flat - flat.mean()) / np.linalg.norm(flat - flat.mean()), atol=1e-6
    )
    assert blank.shape == (3 * 16 * 16,)
