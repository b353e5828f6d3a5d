"""MMEngine settings other than model, data and schedule."""

default_scope = 'mmpretrain'
custom_imports = dict(imports=['nas_lora'])
runner_type = 'nas_lora.SafeRunner'
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=25),
    checkpoint=dict(type='tas_lora.SafeCheckpointHook', interval=1, max_keep_ckpts=1),
)
val_cfg = dict()
test_cfg = dict()
# Architecture parameters outside their turn and experts without input get no gradient.
find_unused_parameters = True
randomness = dict(seed=0)
