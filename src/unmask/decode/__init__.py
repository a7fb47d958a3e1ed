"""Schedules, policies and guidance: which positions are open, and who is committed."""
