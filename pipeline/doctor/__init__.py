"""Check a machine, a configuration and a cluster before a run; start at `examine.py`."""
