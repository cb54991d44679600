"""Every path below OUTPUT."""
