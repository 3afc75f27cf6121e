"""What every other folder stands on: the batch, errors, files, palettes."""
