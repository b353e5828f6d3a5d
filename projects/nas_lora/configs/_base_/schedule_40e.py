"""40 epochs of Adam at 1e-4, as published for NAS-LoRA's weights."""

optim_wrapper = dict(type='tas_lora.SupernetOptimWrapper', optimizer=dict(type='Adam', lr=1e-4))
param_scheduler = None
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=40, val_interval=5)
val_cfg = dict()
test_cfg = dict()
