"""The mathematics that families of matrices share: transforms, diagonals, displacement, structured products."""
