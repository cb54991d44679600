"""The command line: the application, shared options, and what people see."""
