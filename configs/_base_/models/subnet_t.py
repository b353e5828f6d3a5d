# An exported subnet of AutoFormer-T as a standalone network; the export sets its size.
_base_ = './autoformer_t.py'

model = dict(backbone=dict(arch='exported/autoformer_t/architecture.json'))
