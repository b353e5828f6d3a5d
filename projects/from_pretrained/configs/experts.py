"""Experts of slices on the frozen network, which stays as it is and is their teacher.

python tools/train.py projects/from_pretrained/configs/experts.py

GPUs: 0. Not run at this length; the README has top-1 after 300 of its 2,250 steps.
"""

_base_ = [
    '../../../data/emoji_ordered/ordered.py',  # of tools/order.py
    '../../../configs/_base_/schedules/distill_experts.py',
]

space = _base_.space
model = dict(
    backbone=dict(
        mole=dict(
            # One expert per combination of heads, MLP ratio and width, and one that is shared.
            num_experts=1 + len(space.num_heads) * len(space.mlp_ratio) * len(space.embed_dim),
            rank=8,
        )
    ),
    router=dict(type='tas_lora.LSTMRouterHead', space=space, shared=1),
    keep_parent=True,
)
train_cfg = dict(space=space)
val_cfg = dict(space=space)
test_cfg = dict(space=space)
