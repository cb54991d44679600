"""The parts of `fcnseg train`."""
