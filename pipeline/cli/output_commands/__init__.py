"""Commands that read or clean up the OUTPUT of a run, one module each."""
