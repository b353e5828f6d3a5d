"""The digits with patches of 2 or 4 pixels: experts chosen by patch size as well, stage 2.

python tools/train.py configs/digits_patches_moLE.py

GPUs: 0, about 40 s on two CPU cores. Measured top-1: configs/README.md.
"""

_base_ = ['./digits_moLE.py']

space = dict(patch_size=[2, 4])
model = dict(
    backbone=dict(patch_size=[2, 4], mole=dict(num_experts=24)),
    router=dict(
        space=dict(patch_size=[2, 4]),
        attributes=['num_heads', 'mlp_ratio', 'embed_dim', 'patch_size'],  # 2 x 2 x 3 x 2 groups
    ),
)
train_cfg = dict(space=dict(patch_size=[2, 4]))
val_cfg = dict(space=dict(patch_size=[2, 4]))
test_cfg = dict(space=dict(patch_size=[2, 4]))
load_from = 'work_dirs/digits_patches_supernet/epoch_30.pth'
