"""Leaf, NAS-LoRA on SAM base by the published schedule.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/leaf_nas_lora.py

GPUs: 1, batch 4 (memory not measured). Not run. Data: configs/_base_/leaf.py.
Published: T_B = 10, as here, is about 0.7 Jaccard above T_B = 0, and T_B = 20 slightly below.
"""

_base_ = ['_base_/leaf.py', '_base_/nas_lora_40e.py']
