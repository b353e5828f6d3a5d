"""Oxford Flowers-102, fine-tuned from an exported subnet of the S space with experts.

tools/dist_train.sh configs/transfer/s_flowers102.py 8

GPUs: 8, batch 8 x 64. Top-1 98.2 (published for TAS-LoRA-S; AutoFormer-S 97.9); not run here.
Recipe chosen here; data: configs/_base_/datasets/flowers102.py.
"""

_base_ = [
    '../_base_/models/subnet_s.py',
    '../_base_/datasets/flowers102.py',
    '../_base_/schedules/transfer.py',
    '../_base_/default_runtime.py',
]
model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
load_from = 'exported/autoformer_s/weights.safetensors'
