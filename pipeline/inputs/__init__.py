"""What INPUT may be: tars, Parquet files, folders, development kits; which part of it."""
