"""What a run reports while it works: Prometheus metrics and the progress file."""
