"""Helps for XLA: products, activations, fusion."""
