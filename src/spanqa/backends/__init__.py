"""Batch to SpanLogits: one file per framework. All use the same weights and give the same numbers."""
