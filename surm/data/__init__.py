"""Data: `sources` and `tfds` open data sets, `splits` holds their examples, `pipeline` and `tokens` make batches."""
