"""Several adapters: switching, combining, adding and serving them, and starting one from another."""
