"""segmod: semantic segmentation systems, faithful to their papers, trained and compared by the same commands."""

__version__ = "0.1.0"
