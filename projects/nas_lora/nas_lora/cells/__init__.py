"""The searchable cell: its operations, its layer, and the training that searches."""
