"""What XLA is helped with: products, activations, fusion."""
