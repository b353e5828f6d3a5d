"""Emoji on photographs, NAS-LoRA in DINOv2-small; prepare_emoji.py writes data/emoji_masks.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/dinov2_emoji.py

GPUs: 0, half a minute on one CPU core. Scores of three seeds: the project's README.
"""

_base_ = ['dinov2_stamps.py']

train_dataloader = dict(dataset=dict(data_root='data/emoji_masks/train'))
val_dataloader = dict(dataset=dict(data_root='data/emoji_masks/val'))
test_dataloader = dict(dataset=dict(data_root='data/emoji_masks/test'))
