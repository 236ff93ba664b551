"""Hidden states as points on a sphere, and how words travel on it."""
