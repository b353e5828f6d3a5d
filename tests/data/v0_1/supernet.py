"""A supernet of the digits, far too small to be good: stage 1."""

default_scope = 'mmpretrain'
space = dict(embed_dim=[8, 16], depth=[1, 2], num_heads=[1, 2], mlp_ratio=[1.0, 2.0])
model = dict(
    type='tas_lora.SupernetClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch=dict(embed_dim=16, num_heads=[2] * 2, mlp_ratio=[2.0] * 2),
        img_size=8,
        patch_size=2,
        in_channels=1,
        head_dim=8,
        max_relative_position=2,
        init_std=0.2,
    ),
    head=dict(type='tas_lora.ElasticClsHead', num_classes=10, init_std=0.2),
)
data_preprocessor = dict(num_classes=10, mean=[78.0], std=[96.0])

digits = dict(
    type='MNIST',
    data_root='data/digits',
    split='train',
    download=False,
    indices=200,
    pipeline=[dict(type='PackInputs')],
)
split = dict(type='tas_lora.HeldOutSplit', size=136, seed=0, dataset=digits)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**split, part='train'),
)
val_dataloader = dict(
    batch_size=136,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**split, part='heldout'),
)
val_evaluator = dict(type='Accuracy')
test_dataloader = dict(
    batch_size=360,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='MNIST',
        data_root='data/digits',
        split='test',
        download=False,
        test_mode=True,
        pipeline=[dict(type='PackInputs')],
    ),
)
test_evaluator = dict(type='Accuracy')

optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=98, begin=2, end=100, convert_to_iter_based=True),
]
train_cfg = dict(
    type='tas_lora.SubnetSamplingTrainLoop', max_epochs=60, val_interval=60, space=space, seed=0
)
val_cfg = dict(
    type='tas_lora.SubnetValLoop',
    space=space,
    subnets=dict(smallest='smallest', largest='largest'),
)
test_cfg = dict(
    type='tas_lora.SubnetTestLoop',
    space=space,
    subnets=dict(smallest='smallest', largest='largest'),
)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='tas_lora.SafeCheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
find_unused_parameters = True
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, diff_rank_seed=True)
