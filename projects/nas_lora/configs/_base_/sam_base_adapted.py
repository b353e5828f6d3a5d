"""SAM base, frozen, whose decoder is trained; an adapter is the config's own."""

_base_ = ['sam_base.py']

model = dict(
    _delete_=True,
    type='nas_lora.AdaptedModel',
    model={{_base_.model}},
)
