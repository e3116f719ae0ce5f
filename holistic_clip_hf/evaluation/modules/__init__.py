# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics for `evaluate.load(path of a folder here)`, offline as well, and for ranks or masks from elsewhere.

They call the functions that the records of `evaluation.retrieval`, `classification` and `segmentation` come from. The
records themselves do not go through `evaluate`, which would write every rank to its cache first.
"""
