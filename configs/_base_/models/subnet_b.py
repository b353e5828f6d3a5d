# An exported subnet of AutoFormer-B as a standalone network; the export sets its size.
_base_ = './autoformer_b.py'

model = dict(backbone=dict(arch='exported/autoformer_b/architecture.json'))
