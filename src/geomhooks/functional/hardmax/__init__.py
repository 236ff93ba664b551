"""Attention at temperature zero: who leads, who follows, and where tokens end."""
