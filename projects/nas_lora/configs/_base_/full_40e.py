"""All of SAM base trained for 40 epochs by Adam at 1e-4: the baseline of the published sets.

Epochs and rate are those of the paper's adapters. Its baseline's settings are not published.
"""

_base_ = ['sam_base.py', 'runtime.py']

optim_wrapper = dict(type='tas_lora.SupernetOptimWrapper', optimizer=dict(type='Adam', lr=1e-4))
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=40, val_interval=5)
