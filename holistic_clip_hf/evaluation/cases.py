# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Cases: questions with candidates of their own, as benchmarks of attributes, composition and negation ask them.

Axes: N images, T texts, H branches, C candidates of a case, D projection width.
"""

from collections.abc import Mapping

import torch

from .benchmarks import Case, CaseBenchmark
from .encoding import DualEncoder, FusedVectors, Processor, encode_images, encode_texts, vectors_by_name
from .ranking import IMAGE_TO_TEXT, TEXT_TO_IMAGE, bootstrap_interval, swapped
from .records import Provenance, Record, Recorder

TASK = "cases"
ALL_KINDS = "all"
# COCO-Facet looks at the first five of 100 images; among two or four texts, only the first counts.
KS = {TEXT_TO_IMAGE: (1, 5), IMAGE_TO_TEXT: (1,)}


def measure_cases(
    model: DualEncoder,
    processor: Processor,
    benchmark: CaseBenchmark,
    *,
    provenance: Provenance,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Record]:
    """Measure recall@k of each kind of case and of all, fused and by each branch.

    Ties count against the model. Cases with an image that cannot be read are left out, and counted.

    Args:
        model: Model of images and texts.
        processor: Processor of the model.
        benchmark: Images, texts and cases.
        provenance: Origin of the run.
        batch_size: Number of images or texts that are encoded together; it changes speed, not results.
        progress: Switch of the bars.

    Raises:
        ValueError: no case is left.
    """
    encoded = encode_images(model, processor, benchmark.dataset, batch_size=batch_size, progress=progress)
    texts = encode_texts(model, processor, benchmark.texts, batch_size=batch_size, progress=progress)
    place = {row: index for index, row in enumerate(encoded.rows.tolist())}
    by_text = benchmark.direction == TEXT_TO_IMAGE
    cases = [found for case in benchmark.cases if (found := _readable(case, place, by_text))]
    if not cases:
        raise ValueError(
            f"None of {len(benchmark.cases)} cases has readable images alone. Check where the images are."
        )
    recorder, records = Recorder(provenance, TASK, len(encoded.left_out)), []
    num_left_out = len(benchmark.cases) - len(cases)
    for told, vectors in vectors_by_name(model, encoded.branch_embeds, texts):
        ranks = torch.tensor([_rank(case, vectors, by_text) for case in cases])
        for kind in (*dict.fromkeys(case.kind for case in cases), ALL_KINDS):
            rows = [row for row, case in enumerate(cases) if kind in (case.kind, ALL_KINDS)]
            sizes = torch.tensor([len(cases[row].candidates) for row in rows]).double()
            for k in KS[benchmark.direction]:
                hits = ranks[rows] < k
                records.append(
                    recorder.record(
                        "recall",
                        hits.double().mean().item(),
                        {"kind": kind, "direction": benchmark.direction, **told, "k": k},
                        {"n_queries": len(rows), "n_candidates": int(sizes.max()), "n_left_out": num_left_out},
                        chance=(k / sizes).clamp(max=1).mean().item(),
                        confidence_interval=bootstrap_interval(hits, seed=provenance.seed),
                    )
                )
    return records


def _readable(case: Case, place: Mapping[int, int], by_text: bool) -> Case | None:
    """Return a case with the places of its encoded images, or None if one of them was left out."""
    images = case.candidates if by_text else (case.query,)
    if not all(image in place for image in images):
        return None
    found = tuple(place[image] for image in images)
    return case._replace(candidates=found) if by_text else case._replace(query=found[0])


def _rank(case: Case, vectors: FusedVectors, by_text: bool) -> int:
    """Count the wrong candidates that score at least as high as the right one."""
    queries, candidates = (vectors.texts, vectors.images) if by_text else (vectors.images, vectors.texts)
    score = swapped(vectors.score) if by_text else vectors.score
    asked, compared = queries[case.query][None].double(), candidates[list(case.candidates)].double()
    right, wrong = score(asked, compared)[0].tensor_split([1])
    return int((wrong >= right).sum())
