"""Corpora: datasets with one row per image and its captions by perspective."""
