"""Worker processes that hold the network; a worker that an image crashes is replaced."""
