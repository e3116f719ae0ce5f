"""How alike captions are, and which of them are dropped."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from holistic_clip_hf.corpus.diversity import drop_similar, embedding_similarity, sentence_embedder, word_similarity


def captions(*texts: str) -> list[dict[str, str]]:
    return [{"perspective": f"p{place}", "text": text, "source": "test"} for place, text in enumerate(texts)]


def test_words_and_pairs_by_hand() -> None:
    """Of "a red dog" and "A dog, red": 3 words in both, "a red", "red dog" against "a dog", "dog red": 3 of 7."""
    found = word_similarity(["a red dog", "A dog, red", "two cats", "a red DOG.", ""])
    assert np.allclose(found, found.T) and np.allclose(np.diag(found), 1)
    assert found[0] == pytest.approx([1, 3 / 7, 0, 1, 0])
    assert found[2, 4] == 0 and word_similarity(["", "..."]).tolist() == [[1, 1], [1, 1]]
    assert word_similarity([]).shape == (0, 0)


def test_cosines_by_hand() -> None:
    compare = embedding_similarity(lambda texts: np.array([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0]])[: len(texts)])
    assert compare(["a", "b", "c"]) == pytest.approx(np.array([[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]]))
    assert compare([]).shape == (0, 0)


@pytest.mark.parametrize("rows", [[[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [np.nan, 0.0]], [1.0, 2.0]])
def test_embeddings_that_are_none_are_refused(rows: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="`embed` gave embeddings"):
        embedding_similarity(lambda texts: np.array(rows))(["a", "b"])


def test_the_earlier_of_two_stays() -> None:
    """The third is close to the second only, which is dropped: it stays."""
    matrix = np.array([[1, 0.9, 0.5], [0.9, 1, 0.9], [0.5, 0.9, 1]])
    given = captions("one", "two", "three")
    kept, dropped = drop_similar(given, lambda texts: matrix, 0.9)
    assert kept == [given[0], given[2]]
    [(caption, reason)] = dropped
    assert caption == given[1] and reason == "similarity 0.90 to 'p0' from 'test', at most 0.9"
    assert drop_similar(given, lambda texts: matrix, 0.95) == (given, [])
    assert drop_similar([], word_similarity, 0.5) == ([], [])


def test_1_drops_what_is_the_same_word_for_word() -> None:
    given = captions("A red dog.", "a red dog", "a red cat")
    kept, dropped = drop_similar(given, word_similarity, 1)
    assert kept == [given[0], given[2]] and [each.caption for each in dropped] == [given[1]]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="`threshold` is "):
        drop_similar(captions("a", "b"), word_similarity, threshold)


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.full((2, 2), np.nan)])
def test_similarities_that_are_none_are_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`compare` gave similarities of shape"):
        drop_similar(captions("a", "b"), lambda texts: matrix, 0.5)


def test_a_users_model(tmp_path: Path) -> None:
    """A model of sentence-transformers that counts words: made here, of any size on the Hub."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    SentenceTransformer(modules=[BoW(vocab=["red", "dog", "cat", "sits"])], device="cpu").save(str(tmp_path / "bow"))
    compare = embedding_similarity(sentence_embedder(str(tmp_path / "bow")))
    texts: Sequence[str] = ["red dog sits", "red cat sits", "dog"]
    third = 1 / 3**0.5
    assert compare(list(texts)) == pytest.approx(np.array([[1, 2 / 3, third], [2 / 3, 1, 0], [third, 0, 1]]), abs=1e-6)
