# An exported subnet of AutoFormer-S as a standalone network; the export sets its size.
_base_ = './autoformer_s.py'

model = dict(backbone=dict(arch='exported/autoformer_s/architecture.json'))
