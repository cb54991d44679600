"""HTML report of an output."""
