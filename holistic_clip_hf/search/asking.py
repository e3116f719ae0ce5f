# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Terms to the vectors that images are held against."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.encoding import DualEncoder, encode_texts
from .embedding import embed_images
from .manifest import FUSED_ONLY, Layout
from .query import FUSED, Term
from .scoring import MAX, SOFTMAX, Question, require_finite

MOST_REMEMBERED = 1_024  # texts; moving a slider asks the same ones again


class Asker:
    """Encodes the terms of queries, those of one thread at a time.

    Args:
        model, processor: of the checkpoint that made the index.
        layout: of the index.
    """

    def __init__(self, model: DualEncoder, processor: Any, layout: Layout) -> None:
        self.model, self.processor, self.layout = model, processor, layout
        self.fusion = copy.deepcopy(model.branch_fusion).float().cpu()
        scale = model.config.fusion_scale
        self.scale = float(model.logit_scale.detach().float().exp()) if scale is None else float(scale)
        self._remembered: OrderedDict[str, np.ndarray] = OrderedDict()
        # A tokenizer of the fast kind refuses two threads at once, and a model has one mode for all.
        self._lock = threading.Lock()

    def ask(self, terms: Sequence[Term]) -> list[Question]:
        """Each term as vectors, in the space of the index.

        Raises:
            ValueError: a term by perspective where the index has fused vectors only; an image that the processor
                refuses; values that are not finite.
        """
        if self.layout.vectors == FUSED_ONLY:
            for term in terms:
                if term.perspective != FUSED:
                    raise ValueError(
                        f"{str(term)!r} asks one branch, but the index holds one fused vector for an image. Ask "
                        f"without a perspective, or index with vectors='branches'."
                    )
        with self._lock:
            texts = self._encode(list(dict.fromkeys(term.text for term in terms if term.text is not None)))
            questions = [
                self._of_image(term) if term.text is None else self._of_text(term, texts[term.text]) for term in terms
            ]
        require_finite(questions)
        return questions

    def _encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        new = [text for text in texts if text not in self._remembered]
        if new:
            vectors = encode_texts(self.model, self.processor, new, batch_size=32).numpy()
            self._remembered.update(zip(new, vectors, strict=True))
        found = {text: self._remembered[text] for text in texts}
        for text in texts:
            self._remembered.move_to_end(text)
        while len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def _of_text(self, term: Term, vector: np.ndarray) -> Question:
        if self.layout.vectors == FUSED_ONLY:
            return Question(term, {FUSED: vector})
        if term.perspective != FUSED:
            return Question(term, {term.perspective: vector})
        names = self.layout.perspectives
        if self.fusion.is_linear:
            return Question(term, dict(zip(names, self._split(torch.from_numpy(vector)).numpy(), strict=True)))
        combine = MAX if self.fusion.config.fusion == "max" else SOFTMAX
        return Question(term, dict.fromkeys(names, vector), combine, self.scale)

    def _split(self, text: Tensor) -> Tensor:
        """(D,) to (H, D): the text once for each branch, times its share in the fused similarity."""
        num_branches = len(self.layout.perspectives)
        with torch.inference_mode():
            if self.fusion.is_routed:
                return self.fusion.text_vectors(text[None])[0].unflatten(0, (num_branches, -1))
            return self._shares()[:, None] * text

    def _shares(self) -> Tensor:
        """(H,): how much each branch counts in the mean."""
        return self.fusion.mean(torch.eye(len(self.layout.perspectives))[:, :, None])[:, 0]

    def _of_image(self, term: Term) -> Question:
        """Branch against branch; fused, the mean of that over branches, however texts are fused."""
        assert term.image is not None
        is_fused_only = self.layout.vectors == FUSED_ONLY
        found = embed_images(self.model, self.processor, [term.image], fused=is_fused_only)[0]
        if is_fused_only:
            return Question(term, {FUSED: found[0]})
        by_name = dict(zip(self.layout.perspectives, found, strict=True))
        if term.perspective != FUSED:
            return Question(term, {term.perspective: by_name[term.perspective]})
        shares = self._shares().numpy()
        return Question(
            term, {name: share * vector for share, (name, vector) in zip(shares, by_name.items(), strict=True)}
        )
