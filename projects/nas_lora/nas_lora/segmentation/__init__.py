"""Masks: data, decoder, loss and metrics."""
