"""Vision transformers of other libraries: where their layers are, and how they are adapted."""
