"""Tasks: how examples become batches, the loss of a model on them, and the metrics that sum it up."""
