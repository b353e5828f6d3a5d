# scikit-learn's handwritten digits, written by tools/prepare_digits.py in the format of MNIST:
# 1,437 images to train on, 360 to test on. 287 training images, drawn with a fixed seed, are held
# out for the search.
data_preprocessor = dict(num_classes=10, mean=[78.0], std=[96.0])

train_pipeline = [
    # Shift by up to one pixel.
    dict(
        type='RandomApply', prob=0.4, transforms=[dict(type='RandomCrop', crop_size=8, padding=1)]
    ),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
split = dict(type='tas_lora.HeldOutSplit', size=287, seed=0)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='RepeatDataset',
        times=5,  # an "epoch" is five passes
        dataset=dict(
            **split,
            part='train',
            dataset=dict(
                type='MNIST',
                data_root='data/digits',
                split='train',
                download=False,
                pipeline=train_pipeline,
            ),
        ),
    ),
)
# The search scores subnets on these images.
heldout_dataloader = dict(
    batch_size=512,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **split,
        part='heldout',
        dataset=dict(
            type='MNIST',
            data_root='data/digits',
            split='train',
            download=False,
            pipeline=test_pipeline,
        ),
    ),
)
val_dataloader = heldout_dataloader
val_evaluator = dict(type='Accuracy')
test_dataloader = dict(
    batch_size=512,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        # MNIST reads the test files only with test_mode=True, whatever the split.
        type='MNIST',
        data_root='data/digits',
        split='test',
        download=False,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='Accuracy')
