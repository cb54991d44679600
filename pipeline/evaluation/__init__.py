"""Scores of a network on a labeled input. Nothing is written."""
