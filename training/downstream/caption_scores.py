"""Scores of generated captions by the tools of COCO: BLEU-4, ROUGE-L and CIDEr of pycocoevalcap, with its tokenizer.

They are those of the paper's Table 5 and of nearly all work on captions. The tokenizer is a Java program that comes
with the package.
"""

import shutil
from collections.abc import Sequence
from typing import NamedTuple

from holistic_clip_hf.storage import import_extra

EXTRA = "downstream"


class CaptionScores(NamedTuple):
    """Scores of one caption for each of N images.

    Args:
        bleu: BLEU-4 of all.
        rouge: N values of ROUGE-L, whose mean is that of all.
        cider: N values of CIDEr, whose mean is that of all.
    """

    bleu: float
    rouge: list[float]
    cider: list[float]


def require_scorers() -> None:
    """Refuse a machine that cannot score captions, before anything is trained.

    Raises:
        ImportError: pycocoevalcap is not installed.
        ValueError: there is no Java.
    """
    import_extra("pycocoevalcap", EXTRA)
    if shutil.which("java") is None:
        raise ValueError(
            "`score_captions` is true and there is no program `java`; expected one, since COCO's tokenizer is written "
            "in it. Install a Java runtime, or set `score_captions: false` for perplexity alone."
        )


def score_captions(found: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption for each of N images against that image's references.

    Args:
        found: N captions.
        references: N lists of one reference or more.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenized(texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
        # One text to a line, whatever white space it has.
        rows = {row: [{"caption": " ".join(text.split())} for text in each] for row, each in enumerate(texts)}
        return PTBTokenizer().tokenize(rows)

    truth, answers = tokenized(references), tokenized([[text] for text in found])
    bleu, _ = Bleu(4).compute_score(truth, answers, verbose=0)
    _, rouge = Rouge().compute_score(truth, answers)
    _, cider = Cider().compute_score(truth, answers)
    return CaptionScores(float(bleu[3]), rouge.tolist(), cider.tolist())
