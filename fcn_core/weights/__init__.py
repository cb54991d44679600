"""Weights files: reading, writing, description, and conversion from other projects."""
