# An exported subnet of AutoFormer-B as a network of its own, its size from the export.
_base_ = './autoformer_b.py'

model = dict(backbone=dict(arch='exported/autoformer_b/architecture.json'))
