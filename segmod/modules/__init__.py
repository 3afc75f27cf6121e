"""Modules: the loss of a batch, as LightningModules."""
