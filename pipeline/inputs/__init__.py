"""What INPUT holds: shards and samples in tars, Parquet files, folders and datasets."""
