"""SBU, NAS-LoRA on SAM base by the published schedule.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/sbu_nas_lora.py

GPUs: 1, batch 4 (memory not measured). Not run. Data: configs/_base_/sbu.py.
"""

_base_ = [
    '_base_/sam_base_adapted.py',
    '_base_/sbu.py',
    '_base_/stage_wise_40e.py',
    '_base_/runtime.py',
]

model = dict(adapter=dict(type='nas_lora.NASLoRALinear', rank=3, preset='linear'))
