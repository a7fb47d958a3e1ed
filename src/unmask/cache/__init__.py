"""Cache policies: which rows are recomputed, and what may be stale."""
