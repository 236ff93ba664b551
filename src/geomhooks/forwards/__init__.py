"""One forward: whose hooks tell of it, what its tokens are, and which tensors each site shows."""
