"""Score a network on a labeled input, without writing anything."""
