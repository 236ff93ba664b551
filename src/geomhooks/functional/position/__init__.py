"""What position and context make of hidden states."""
