"""Commands that do work, one module each."""
