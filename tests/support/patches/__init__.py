"""Modules that `tests.support.child_patches` puts into child processes. They import little."""
