"""Kvasir-SEG, all of SAM base trained: the baseline for the adapters.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/kvasir_full.py

GPUs: 1, batch 4 (memory not measured). Not run. Data: configs/_base_/kvasir.py.
"""

_base_ = ['_base_/kvasir.py', '_base_/full_40e.py']
