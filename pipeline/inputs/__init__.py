"""Inputs: shards and samples in tars, Parquet files, folders of images, and datasets."""
