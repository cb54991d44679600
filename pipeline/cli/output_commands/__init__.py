"""Commands that look at an output or clean it up, one module each."""
