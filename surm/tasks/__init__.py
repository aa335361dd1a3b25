"""What is asked of a model: how examples reach it, how wrong it is, and how that is summed up."""
