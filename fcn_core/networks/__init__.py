"""The networks of the paper: descriptions, layer tables, crops and torch modules."""
