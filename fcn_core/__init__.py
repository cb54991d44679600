"""The science of the pipeline: arrays, tensors, classes and scores. No I/O beyond local files."""
