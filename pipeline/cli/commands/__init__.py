"""Commands that read an INPUT or weights, one module each."""
