"""TAS-LoRA-T with a GRU as router (supplement: LSTM, GRU, block-wise MLP).

tools/dist_train.sh configs/ablations/t_router_gru.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.6 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(router=dict(type='tas_lora.GRURouterHead'))
