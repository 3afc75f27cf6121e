"""Studies: the papers' figures, drawn and counted for a trained run."""
