"""From a pretrained ViT to a smaller one: real weights and real pictures for the experiments."""
