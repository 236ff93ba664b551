"""Hidden states as sparse sums of the factors of a dictionary, and what the factors stand for."""
