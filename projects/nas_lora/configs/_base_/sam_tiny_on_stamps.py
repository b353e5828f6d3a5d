"""The tiny SAM as pretrain_stamps.py leaves it."""

_base_ = ['sam_tiny.py']

model = dict(pretrained='work_dirs/pretrain_stamps/epoch_5.pth')
