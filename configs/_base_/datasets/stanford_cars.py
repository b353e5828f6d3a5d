# Stanford Cars: data/stanford_cars/ with car_ims/ and cars_annos.mat, 8,144 training and
# 8,041 test images. The layout of the devkit works as well: cars_train/, cars_test/ and devkit/
# with cars_train_annos.mat and cars_test_annos_withlabels.mat.
_base_ = './transfer.py'

data_preprocessor = dict(num_classes=196)
dataset = dict(type='StanfordCars', data_root='data/stanford_cars')
load = dict(type='LoadImageFromFile')

train_dataloader = dict(
    dataset=dict(
        type='RepeatDataset',
        times=2,  # an "epoch" is two passes
        dataset=dict(**dataset, split='train', pipeline=[load, *_base_.train_transforms]),
    )
)
val_dataloader = dict(
    dataset=dict(**dataset, split='test', pipeline=[load, *_base_.test_transforms])
)
test_dataloader = val_dataloader
