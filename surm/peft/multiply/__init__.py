"""How a layer's update is multiplied by: the paths, fused products, and measured choices between them."""
