"""Training a network from labeled images, alone or on Ray."""
