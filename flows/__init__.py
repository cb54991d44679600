"""Prefect flows around the pipeline. Importing this package loads no torch."""
