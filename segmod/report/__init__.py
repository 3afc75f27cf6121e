"""Reports: one HTML file that shows a run, or a sweep, to whoever gets it."""
