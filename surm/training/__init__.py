"""Training: from a config to a finished run, and back from its folder to a model."""
