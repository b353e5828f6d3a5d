"""Shared settings of all methods on nuclei: a frozen tiny SAM with a trained decoder.

20 epochs of 5 batches, half of the published 40, at a constant rate, as no schedule is published.
The rate is 1e-2 instead of the paper's 1e-4, as there are 100 steps instead of thousands. Among
1e-3, 3e-3 and 1e-2 it is the best, or within .002 of the best, for each adapter and for the decoder
only. It was chosen on the validation tiles, with a seed outside the comparison.
"""

_base_ = ['sam_tiny_on_stamps.py', 'nuclei.py', 'runtime.py']

model = dict(
    _delete_=True,
    type='nas_lora.AdaptedModel',
    model={{_base_.model}},
)
optim_wrapper = dict(type='tas_lora.SupernetOptimWrapper', optimizer=dict(type='Adam', lr=1e-2))
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=20, val_interval=10)
