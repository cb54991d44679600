"""`python -m pipeline` is `fcnseg`."""

from pipeline.entry import main

main()
