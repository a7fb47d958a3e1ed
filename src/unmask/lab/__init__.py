"""Experiments and measurements on decoding and training."""
