"""Where images and labels come from: rendered scenes, and MATLAB files of datasets."""
