"""The tiny SAM after pretrain_stamps.py."""

_base_ = ['sam_tiny.py']

model = dict(pretrained='work_dirs/pretrain_stamps/epoch_5.pth')
