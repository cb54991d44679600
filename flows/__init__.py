"""Prefect flows for segmentation and training. Importing this package loads no torch."""
