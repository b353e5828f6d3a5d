"""Adapters folded or merged into the frozen weights, and the files that leave."""
