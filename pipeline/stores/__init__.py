"""Where objects lie: a module per kind of store, retries, and what a server really guarantees."""
