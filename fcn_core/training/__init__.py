"""Training of a network: recipes, batches, initial weights, and optimizer steps."""
