"""Batches: order, caches, Grain pipelines."""
