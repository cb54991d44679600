"""A Ray cluster from the outside: its Jobs API, its logs, its health."""
