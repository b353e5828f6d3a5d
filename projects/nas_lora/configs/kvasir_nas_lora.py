"""Kvasir-SEG, NAS-LoRA on SAM base by the published schedule.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/kvasir_nas_lora.py

GPUs: 1, batch 4 (memory not measured). Not run. Data: configs/_base_/kvasir.py.
"""

_base_ = ['_base_/kvasir.py', '_base_/nas_lora_40e.py']
