"""Where examples come from (`sources`, `tfds`), what they end as (`splits`), how they become batches (`pipeline`)."""
