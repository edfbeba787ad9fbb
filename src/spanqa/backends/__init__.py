"""Batch to SpanLogits: one file per framework, the same weights, the same numbers."""
