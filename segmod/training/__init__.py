"""Training: Lightning modules, datamodules, callbacks, loggers."""
