"""The weights and the logits of attention, in the parts of the hidden states that meet in them."""
