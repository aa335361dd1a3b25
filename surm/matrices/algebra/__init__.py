"""What families of matrices are made of: transforms, diagonals, displacement, structured products."""
