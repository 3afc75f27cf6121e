"""Runs: their folders, configs, records, and the process around a job."""
