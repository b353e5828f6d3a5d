# Fashion-MNIST (Xiao et al. 2017), 60,000 + 10,000 images of 28 pixels: the four files of the
# MNIST format, unzipped, in data/fashion_mnist. 10,000 training images, drawn with a fixed seed,
# are held out for the search.
data_preprocessor = dict(num_classes=10, mean=[72.9], std=[90.0])

train_pipeline = [
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
split = dict(type='tas_lora.HeldOutSplit', size=10000, seed=0)
training_set = dict(
    type='FashionMNIST', data_root='data/fashion_mnist', split='train', download=False
)

train_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**split, part='train', dataset=dict(**training_set, pipeline=train_pipeline)),
)
# The search scores subnets on these images.
heldout_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**split, part='heldout', dataset=dict(**training_set, pipeline=test_pipeline)),
)
val_dataloader = heldout_dataloader
val_evaluator = dict(type='Accuracy')
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        # The class reads the test files only with test_mode=True, whatever the split.
        type='FashionMNIST',
        data_root='data/fashion_mnist',
        split='test',
        download=False,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='Accuracy')
