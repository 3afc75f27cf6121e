"""Inference: how a whole image is scored."""
