"""A policy, a cache and a model family for unmask, each in one file; the entry points stand in pyproject.toml."""
