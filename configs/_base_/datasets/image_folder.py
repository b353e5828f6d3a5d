# A folder of images of any size: data/image_folder/train/CLASS/*.png and test/CLASS/*.png (or jpg,
# bmp, tif), one folder per class. Some images of train/, drawn with a fixed seed, are held out for
# the search.

# The names of all class folders; the number of classes follows from this list.
classes = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J']
img_size = 32  # of the short edge after resizing; the central square is then cropped
held_out = 400
flip = 0.5  # share of training images that are mirrored; 0 if left and right matter
crop = 0.6  # least share of the area in a random crop; lower it for many large photographs
# Pixel statistics of photographs (R, G, B); tools/space_costs.py says if yours are far off.
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
# Labels number the folders in sorted order, so the names are sorted as well.
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
# The search scores subnets on these images.
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
