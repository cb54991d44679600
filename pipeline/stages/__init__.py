"""The stages of a chunk in the order of its journey: read, segment, write."""
