"""Numeric kernels: one folder per op, each with a documented function and a plain-torch definition."""
