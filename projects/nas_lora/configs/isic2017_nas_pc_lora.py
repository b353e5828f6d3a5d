"""ISIC 2017, NAS-PC-LoRA on SAM base: ratio 2/3, published as the best of three.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/isic2017_nas_pc_lora.py

GPUs: 1, batch 4 (memory not measured). Not run.
"""

_base_ = ['isic2017_nas_lora.py']

model = dict(adapter=dict(ratio=2 / 3))
