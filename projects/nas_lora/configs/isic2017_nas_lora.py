"""ISIC 2017, NAS-LoRA on SAM base by the published schedule.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/isic2017_nas_lora.py

GPUs: 1, batch 4 (memory not measured). Not run. Data: configs/_base_/isic2017.py.
"""

_base_ = ['_base_/isic2017.py', '_base_/nas_lora_40e.py']
