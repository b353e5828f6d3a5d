"""Stanford Cars, fine-tuned from an exported subnet of the S space with experts.

tools/dist_train.sh configs/transfer/s_cars.py 8

GPUs: 8, batch 8 x 64. Top-1 92.3 (published for TAS-LoRA-S; AutoFormer-S 92.1); not run here.
Recipe chosen here; data: configs/_base_/datasets/stanford_cars.py.
"""

_base_ = [
    '../_base_/models/subnet_s.py',
    '../_base_/datasets/stanford_cars.py',
    '../_base_/schedules/transfer.py',
    '../_base_/default_runtime.py',
]
model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
load_from = 'exported/autoformer_s/weights.safetensors'
