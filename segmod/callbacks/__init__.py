"""Callbacks: checkpoints, signals, pictures and panels around a run."""
