"""The report on a corpus against plain loops over hand-made captions, and its table and picture."""

import hashlib
import io
import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from holistic_clip_hf.corpus.diversity import MOST_SLOTS, DiversityReport, Slot, measure_diversity, sentence_bleu
from holistic_clip_hf.corpus.diversity_picture import draw_diversity

Images = list[tuple[str, list[dict[str, str]]]]
WEB, SHORT, DETAIL_A, DETAIL_B = (
    *(Slot("web", "page"), Slot("short", "tiny")),
    *(Slot("detail", "tiny"), Slot("detail", "large")),
)


def image(name: str, **texts: str) -> tuple[str, list[dict[str, str]]]:
    slots = {"web": WEB, "short": SHORT, "a": DETAIL_A, "b": DETAIL_B}
    return name, [{**slots[key]._asdict(), "text": text} for key, text in texts.items()]


CORPUS: Images = [
    image("0", short="a dog", b="a dog sits on a lawn and a cat sleeps"),  # no web text: not first for that
    image("1", web="IMG 7", short="a dog", a="a dog runs to a ball", b="a brown dog runs to a ball"),
    image("2", web="IMG 7", short="two red cats", a="two cats", b="two cats in the sun, and a bird"),
    image("3", web="img 7", a="a dog runs to a ball"),
    image("4", web="sale"),
    image("5"),
]


def one_hot(texts: Sequence[str]) -> np.ndarray:
    """How often each letter is there: (T, 26)."""
    return np.array([[1e-3 + text.count(chr(97 + letter)) for letter in range(26)] for text in texts])


def words(text: str) -> list[str]:
    return text.casefold().replace(",", "").split()


@pytest.fixture(scope="module")
def report() -> DiversityReport:
    return measure_diversity(CORPUS, embed=one_hot)


def test_counts_lengths_and_duplicates(report: DiversityReport) -> None:
    assert (report.images, report.captions, report.sampled) == (6, 13, 6)
    web, short, detail_a, detail_b = report.slots
    assert [slot.name for slot in report.slots] == ["web", "short", "detail (tiny)", "detail (large)"]
    assert [(slot.perspective, slot.source) for slot in report.slots] == [WEB, SHORT, DETAIL_A, DETAIL_B]
    assert [slot.count for slot in report.slots] == [4, 3, 3, 3]
    # "IMG 7" twice; "img 7" is another text.
    assert [slot.duplicates for slot in report.slots] == pytest.approx([2 / 4, 2 / 3, 2 / 3, 0])
    assert [slot.lengths for slot in report.slots] == [{1: 1, 2: 3}, {2: 2, 3: 1}, {2: 1, 6: 2}, {7: 1, 8: 1, 10: 1}]
    assert [slot.mean_words for slot in report.slots] == pytest.approx([7 / 4, 7 / 3, 14 / 3, 25 / 3])
    assert [slot.median_words for slot in report.slots] == [2, 2, 6, 8]


def test_the_median_of_an_even_number() -> None:
    [slot] = measure_diversity([image(str(n), web="a " * n) for n in (1, 2, 4, 9)]).slots
    assert slot.median_words == 3


def test_distinct_runs(report: DiversityReport) -> None:
    for slot, named in zip(report.slots, [WEB, SHORT, DETAIL_A, DETAIL_B], strict=True):
        captions = [caption for _, captions in CORPUS for caption in captions]
        found = [words(each["text"]) for each in captions if (each["perspective"], each["source"]) == named]
        expected = []
        for order in (1, 2, 3):
            runs = [tuple(text[i : i + order]) for text in found for i in range(len(text) - order + 1)]
            expected.append(len(set(runs)) / len(runs) if runs else 0)
        assert slot.distinct == pytest.approx(expected)
    assert report.slots[0].distinct == pytest.approx((3 / 7, 1 / 3, 0))


def test_self_bleu(report: DiversityReport) -> None:
    scores = []
    for _, captions in CORPUS:
        texts = [words(caption["text"]) for caption in captions]
        if len(texts) > 1:
            scores += [sentence_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert len(scores) == 12
    assert report.self_bleu == pytest.approx(sum(scores) / len(scores))


def shared(one: str, other: str) -> float:
    parts = [{*words(text), *zip(words(text), words(text)[1:], strict=False)} for text in (one, other)]
    return len(parts[0] & parts[1]) / len(parts[0] | parts[1])


def cosine(one: str, other: str) -> float:
    first, second = one_hot([one, other])
    return float(first @ second / (first @ first * (second @ second)) ** 0.5)


def test_similarity_within_images_and_between_slots(report: DiversityReport) -> None:
    order = [WEB, SHORT, DETAIL_A, DETAIL_B]
    for found, compare in ((report.words, shared), (report.embeddings, cosine)):
        means, between = [], {}
        for _, captions in CORPUS:
            values = []
            for one, other in combinations(captions, 2):
                values.append(compare(one["text"], other["text"]))
                pair = frozenset(order.index((each["perspective"], each["source"])) for each in (one, other))
                between.setdefault(pair, []).append(values[-1])
            if values:
                means.append(sum(values) / len(values))
        assert found is not None and found.mean == pytest.approx(sum(means) / len(means))
        for row in range(4):
            for column in range(4):
                values = between.get(frozenset((row, column)))
                value = found.between[row][column]
                assert value is None if values is None else value == pytest.approx(sum(values) / len(values))
    assert report.words.between[0][0] is None


def test_a_sample_is_the_same_whatever_the_order() -> None:
    """The images with the lowest hashes of seed and id."""
    images = [image(f"image-{n}", web=f"w{n} x y", short=f"w{n} {n % 3}" + " y" * (n % 7)) for n in range(50)]
    found = measure_diversity(images, sample=10)
    assert measure_diversity(images[::-1], sample=10) == found
    assert (found.images, found.sampled, found.captions) == (50, 10, 100)
    hashes = {name: hashlib.blake2b(f"0 {name}".encode(), digest_size=8).digest()[::-1] for name, _ in images}
    chosen = [each for each in images if each[0] in sorted(hashes, key=hashes.__getitem__)[:10]]
    alone = measure_diversity(chosen)
    assert (found.self_bleu, found.words) == (alone.self_bleu, alone.words)
    assert [slot.distinct for slot in found.slots] == [slot.distinct for slot in alone.slots]
    assert measure_diversity(images, sample=10, seed=1).words != found.words


def test_a_stream_is_read_once(report: DiversityReport) -> None:
    assert measure_diversity(iter(CORPUS), embed=one_hot) == report


def test_the_table(report: DiversityReport) -> None:
    lines = report.table().splitlines()
    assert lines[0].startswith("| slot | captions |") and {line.count("|") for line in lines[:6]} == {9}
    assert lines[2] == "| web | 4 | 1.8 | 2 | 50.0% | 0.43 | 0.33 | 0.00 |"
    assert "self-BLEU 0." in lines[-1] and "text similarity (cosine) 0." in lines[-1]
    assert "6 images with 13 captions; distinct-n and these from 6 of the images" in lines[-1]
    piped = measure_diversity([("0", [{"perspective": "a|b", "text": "c", "source": "d"}])]).table()
    assert "| a\\|b | 1 |" in piped and "self-BLEU -" in piped


def test_json_holds_it_all(report: DiversityReport) -> None:
    read = json.loads(json.dumps(report.to_dict()))
    assert read["slots"][1]["lengths"] == {"2": 2, "3": 1} and read["embeddings"]["mean"] == report.embeddings.mean


def test_bad_input_is_refused() -> None:
    for images in ([], [image("0")]):
        with pytest.raises(ValueError, match="no caption of them"):
            measure_diversity(images)
    with pytest.raises(ValueError, match="`sample` is 0"):
        measure_diversity(CORPUS, sample=0)
    with pytest.raises(ValueError, match="`embed` gave embeddings of shape"):
        measure_diversity(CORPUS, embed=lambda texts: np.ones((1, 3)))
    many = [("0", [{"perspective": "web", "text": "a", "source": str(n)} for n in range(MOST_SLOTS + 1)])]
    with pytest.raises(ValueError, match=f"more than {MOST_SLOTS} pairs"):
        measure_diversity(many)


@pytest.mark.parametrize("size", ["one caption", "corpus", "many slots"])
def test_the_picture_shows_on_light_and_dark_pages(report: DiversityReport, size: str) -> None:
    many = [
        (str(n), [{"perspective": f"$p{k}_" * 9, "text": "a b", "source": "s"} for k in range(14)]) for n in range(2)
    ]
    shown = {
        "one caption": lambda: measure_diversity([image("0", web="...")]),
        "corpus": lambda: report,
        "many slots": lambda: measure_diversity(many),
    }[size]()
    figure = draw_diversity(shown)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    drawn = np.asarray(Image.open(file).convert("RGBA"), dtype=float)
    for page in (255.0, 17.0):
        alpha = drawn[..., 3:] / 255
        seen = drawn[..., :3] * alpha + page * (1 - alpha)
        assert (np.abs(seen - page).max(axis=-1) > 60).mean() > 0.005
    assert (drawn[..., 3] == 0).mean() > 0.3  # the page shows through
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == len(shown.slots)
    assert [axes.get_title().split()[0] for axes in figure.axes] == ["length", "distinct-1,", "alike"]


def test_the_bars_are_the_numbers(report: DiversityReport) -> None:
    _, distinct, between = draw_diversity(report).axes
    assert sorted(bar.get_width() for bar in distinct.patches) == pytest.approx(
        sorted(share for slot in report.slots for share in slot.distinct)
    )
    assert report.embeddings is not None
    numbers = sorted(text.get_text() for text in between.texts)
    assert numbers == sorted(f"{value:.2f}" for row in report.embeddings.between for value in row if value is not None)
