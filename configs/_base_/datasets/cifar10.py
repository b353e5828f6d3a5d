# CIFAR-10: data/cifar10/cifar-10-batches-py/, as unpacked from cifar-10-python.tar.gz. Test
# images of 32 pixels are enlarged without a crop.
_base_ = './transfer.py'

data_preprocessor = dict(num_classes=10, to_rgb=False)  # RGB as stored
dataset = dict(type='CIFAR10', data_root='data/cifar10', download=False)
enlarge = [dict(type='Resize', scale=(224, 224), **_base_.bicubic), dict(type='PackInputs')]

train_dataloader = dict(dataset=dict(**dataset, split='train', pipeline=_base_.train_transforms))
val_dataloader = dict(dataset=dict(**dataset, split='test', pipeline=enlarge))
test_dataloader = val_dataloader
