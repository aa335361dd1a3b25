"""The ways to multiply by a layer's update: the paths, fused products, and the measured choice between them."""
