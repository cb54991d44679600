"""How far a run is: metrics for Prometheus, and the progress file."""
