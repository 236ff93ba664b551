"""How much each term of a hidden state has to do with the whole."""
