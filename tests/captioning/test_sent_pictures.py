"""Pictures for a server: within the limits, whatever mode they have."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from holistic_clip_hf.captioning.sent_pictures import SentLimits, data_url


def stripes() -> Image.Image:
    """Black and white by turns, pixel by pixel: at half the size they are grey, by the nearest pixel they are not."""
    image = Image.new("L", (128, 128), 255)
    for x in range(0, 128, 2):
        image.paste(0, (x, 0, x + 1, 128))
    return image


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "I;16", "CMYK"])
def test_any_mode_is_sent_as_the_model_would_see_it(mode: str, image_format: str) -> None:
    image = stripes()
    given = image.convert("I").point(lambda value: value * 257).convert("I;16") if mode == "I;16" else image
    if mode != "I;16":
        given = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    url = data_url(given, image_format, SentLimits(max_side=32))
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert (sent.mode, sent.size) == ("RGB", (32, 32))
    assert np.abs(np.asarray(sent).astype(float) - 127.5).max() < 20
