# CIFAR-100: data/cifar100/cifar-100-python/, as unpacked from cifar-100-python.tar.gz. The rest
# is as for CIFAR-10.
_base_ = './cifar10.py'

data_preprocessor = dict(num_classes=100)
dataset = dict(type='CIFAR100', data_root='data/cifar100')

train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
