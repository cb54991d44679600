"""`python -m pipeline` is `fcnseg`."""

from pipeline.cli import main

main()
