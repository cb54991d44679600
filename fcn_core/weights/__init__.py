"""Weights files: read, written, described, and converted from other projects."""
