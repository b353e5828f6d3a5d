# iNaturalist 2019: data/inaturalist2019/ with train2019.json, val2019.json and train_val2019/.
# Testing uses the validation images: the labels of the test images are not public.
_base_ = './transfer.py'

data_preprocessor = dict(num_classes=1010)
dataset = dict(type='tas_lora.INaturalist2019', data_root='data/inaturalist2019')
load = dict(type='LoadImageFromFile')

train_dataloader = dict(
    dataset=dict(**dataset, split='train', pipeline=[load, *_base_.train_transforms])
)
val_dataloader = dict(
    dataset=dict(**dataset, split='val', pipeline=[load, *_base_.test_transforms])
)
test_dataloader = val_dataloader
