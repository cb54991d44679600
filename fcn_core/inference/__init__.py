"""The forward pass of inference: windows, arithmetic, int8, transfers to the device."""
