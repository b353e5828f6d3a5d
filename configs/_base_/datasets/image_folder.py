# A folder of images of any size: data/image_folder/train/CLASS/*.png and test/CLASS/*.png (jpg, bmp
# and tif, too), a folder for each class. Part of the images of train/, drawn by a fixed seed, are
# held out and left to the search.

# The names of the class folders, all of them: the number of classes follows from this list.
classes = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J']
img_size = 32  # of the short edge after resizing, of which the central square is cut out
held_out = 400
flip = 0.5  # share of training images that are mirrored; 0 where left and right mean something
crop = 0.6  # least share of the area that a random crop takes; less for many large photographs
# Of the pixels, R, G, B. These are of photographs; tools/space_costs.py tells if yours are far off.
mean = [123.675, 116.28, 103.53]
std = [58.395, 57.12, 57.375]

data_preprocessor = dict(num_classes=len(classes), mean=mean, std=std, to_rgb=True)
bicubic = dict(backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=img_size, crop_ratio_range=(crop, 1.0), **bicubic),
    dict(type='RandomFlip', prob=float(flip), direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=img_size, edge='short', **bicubic),
    dict(type='CenterCrop', crop_size=img_size),
    dict(type='PackInputs'),
]
# Labels are places among the folders in sorted order, and names must follow.
folder = dict(
    type='CustomDataset', data_root='data/image_folder', metainfo=dict(classes=sorted(classes))
)
split = dict(type='tas_lora.HeldOutSplit', size=held_out, seed=0)

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **split, part='train', dataset=dict(**folder, data_prefix='train', pipeline=train_pipeline)
    ),
)
# What the search scores subnets on.
heldout_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **split, part='heldout', dataset=dict(**folder, data_prefix='train', pipeline=test_pipeline)
    ),
)
val_dataloader = heldout_dataloader
val_evaluator = dict(type='Accuracy')
test_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**folder, data_prefix='test', pipeline=test_pipeline, test_mode=True),
)
test_evaluator = dict(type='Accuracy')
