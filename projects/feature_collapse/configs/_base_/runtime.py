"""What all trainings share."""

_base_ = '../../../../configs/_base_/default_runtime.py'

custom_imports = dict(imports=['feature_collapse'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1))
log_level = 'ERROR'  # run.py tells the progress
