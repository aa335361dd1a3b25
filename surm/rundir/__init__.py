"""The folder of a run: its config, metrics, checkpoints and lock."""
