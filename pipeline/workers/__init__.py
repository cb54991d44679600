"""Processes that hold a network and may be killed by a picture."""
