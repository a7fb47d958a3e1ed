"""Consumers of the event stream: the terminal canvas, recordings, pictures, counters. They see ids and pieces, never
a model.
"""
