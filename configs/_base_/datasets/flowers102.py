# Oxford Flowers-102: data/flowers102/ with jpg/, imagelabels.mat and setid.mat. Training uses the
# official training and validation images together (2,040), testing the other 6,149.
_base_ = './transfer.py'

data_preprocessor = dict(num_classes=102)
dataset = dict(type='Flowers102', data_root='data/flowers102')
load = dict(type='LoadImageFromFile')

train_dataloader = dict(
    dataset=dict(
        type='RepeatDataset',
        times=5,  # an "epoch" is five passes
        dataset=dict(**dataset, split='trainval', pipeline=[load, *_base_.train_transforms]),
    )
)
val_dataloader = dict(
    dataset=dict(**dataset, split='test', pipeline=[load, *_base_.test_transforms])
)
test_dataloader = val_dataloader
