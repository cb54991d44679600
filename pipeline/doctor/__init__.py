"""Checks of a machine, a configuration and a cluster before a run."""
