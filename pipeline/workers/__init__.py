"""Worker processes that hold the network and can be replaced when an image ends one."""
