# All weights of a pretrained network learn from labels, at the rate of distill_all.py.
_base_ = './distill_all.py'

train_cfg = dict(_delete_=True, type='tas_lora.ResumableTrainLoop', max_epochs=30, val_interval=5)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
