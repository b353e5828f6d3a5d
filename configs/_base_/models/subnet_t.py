# An exported subnet of AutoFormer-T as a network of its own, its size from the export.
_base_ = './autoformer_t.py'

model = dict(backbone=dict(arch='exported/autoformer_t/architecture.json'))
