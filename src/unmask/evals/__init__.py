"""Scores: likelihood, tasks with checkers, recorded reference outputs."""
