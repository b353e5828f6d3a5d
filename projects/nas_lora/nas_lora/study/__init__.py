"""The comparison: what is trained, recorded, measured and drawn."""
