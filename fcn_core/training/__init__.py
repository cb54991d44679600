"""How a network learns: recipes, batches, initialization, and steps."""
