"""Sources of images and labels: rendered scenes, and MATLAB files of published datasets."""
