"""Stamps on photographs: tools/prepare_stamps.py writes data/stamps."""

_base_ = ['tiles_64.py']

train_dataloader = dict(dataset=dict(data_root='data/stamps/train'))
val_dataloader = dict(dataset=dict(data_root='data/stamps/val'))
test_dataloader = dict(dataset=dict(data_root='data/stamps/test'))
