# An exported subnet of AutoFormer-S as a network of its own, its size from the export.
_base_ = './autoformer_s.py'

model = dict(backbone=dict(arch='exported/autoformer_s/architecture.json'))
