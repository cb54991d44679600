"""The forward pass of inference: windows, number formats, int8, and transfers to the device."""
