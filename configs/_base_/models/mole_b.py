# AutoFormer-B with one expert per combination of heads, MLP ratio and width.
_base_ = './autoformer_b.py'

model = dict(
    backbone=dict(mole=dict(num_experts=18, rank=8)),
    router=dict(type='tas_lora.LSTMRouterHead', space={{_base_.space}}, beta=3.0),
)
