"""Operations written so that XLA compiles them well: products, activations, control of fusion."""
