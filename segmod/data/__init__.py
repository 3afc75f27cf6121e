"""Data: datasets, joint transforms and the order of samples."""
