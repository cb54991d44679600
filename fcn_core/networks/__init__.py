"""The networks of the paper: their descriptions, layers, crops and modules."""
