"""The command line `fcnseg`: one module per command, with shared options and printing."""
