"""Lightning datamodules: what a run trains and is evaluated on."""
