"""Leaf, NAS-LoRA on SAM base with T_B = 0.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/leaf_nas_tb0.py

GPUs: 1, batch 4 (memory not measured). Not run. Published: about 0.7 Jaccard below T_B = 10.
"""

_base_ = ['leaf_nas_lora.py']

custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=0)]
