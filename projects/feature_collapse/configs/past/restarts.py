"""As free.py, the rate restarted every five epochs to leave the basin all subnets share.

python run.py --parts past
"""

_base_ = './free.py'

param_scheduler = dict(
    experts=[
        dict(
            type='CosineRestartLR',
            periods=[5, 5, 5, 5],
            restart_weights=[1, 1, 1, 1],
            eta_min=0,
            convert_to_iter_based=True,
        )
    ]
)
