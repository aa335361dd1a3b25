"""Several adapters: switched, combined, served side by side, started from others."""
