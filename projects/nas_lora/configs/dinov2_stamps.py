"""Stamps on photographs, NAS-LoRA in DINOv2-small; prepare_stamps.py writes data/stamps_112.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/dinov2_stamps.py

GPUs: 0, half a minute on one CPU core. Scores of three seeds: the project's README.
"""

_base_ = ['_base_/nas_lora_dinov2.py', '_base_/tiles_64.py']

train_dataloader = dict(batch_size=8, dataset=dict(data_root='data/stamps_112/train'))
val_dataloader = dict(dataset=dict(data_root='data/stamps_112/val'))
test_dataloader = dict(dataset=dict(data_root='data/stamps_112/test'))
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=2)]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=8, val_interval=4)
