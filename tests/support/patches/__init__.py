"""What `tests.support.child_patches` puts into child processes: modules that import next to nothing."""
