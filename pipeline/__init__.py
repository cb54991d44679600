"""The factory: shards in, masks, statistics and commits out. No torch or ray at import."""
