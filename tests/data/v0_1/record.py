"""Write to expected.json what 0.1 computes from these files; see README.md."""

import json
from pathlib import Path

import torch
from mmengine.config import Config

from tas_lora import SearchSpace, load_supernet, read_subnet
from tas_lora.models.plain_vit import load_plain_vit

IMAGES = torch.linspace(-2, 2, 128).sin().view(2, 1, 8, 8)
SPACE = SearchSpace(embed_dim=[8, 16], depth=[1, 2], num_heads=[1, 2], mlp_ratio=[1.0, 2.0])
SUBNETS = dict(
    smallest=SPACE.smallest(),
    largest=SPACE.largest(),
    found=read_subnet('runs/search/best_subnet.json'),
)


@torch.no_grad()
def logits(config, checkpoint):
    """Of the fixed images, by name of the subnet; experts are merged."""
    model, found = load_supernet(config, checkpoint), {}
    for name, subnet in SUBNETS.items():
        model.set_subnet(subnet)
        found[name] = model(IMAGES, mode='tensor').tolist()
    return found


def expert_shapes():
    """Shapes of the experts, their ranks by the recorded importance."""
    config = Config.fromfile('moLE.py')
    config.model.backbone.mole.importance = 'importance.json'
    state = load_supernet(config).state_dict()
    return {name: list(value.shape) for name, value in state.items() if 'lora' in name}


expected = dict(
    subnets={name: subnet.to_dict() for name, subnet in SUBNETS.items()},
    supernet=logits('supernet.py', 'runs/supernet/epoch_59.pth'),
    supernet_trained_on=logits('supernet.py', 'runs/supernet/epoch_60.pth'),
    moLE=logits('moLE.py', 'runs/moLE/epoch_9.pth'),
    moLE_trained_on=logits('moLE.py', 'runs/moLE/epoch_10.pth'),
    export=load_plain_vit('export')[0](IMAGES).tolist(),
    expert_shapes=expert_shapes(),
)
lines = [f'{json.dumps(key)}: {json.dumps(value)}' for key, value in expected.items()]
Path('expected.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')
