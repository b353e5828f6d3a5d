"""Pictures and masks that are made of packages without a hub."""
