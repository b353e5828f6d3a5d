"""Runs of a toy model with stage-wise training, and what moved in them."""

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from nas_lora.runner import SafeRunner
from nas_lora.vits.adapt import AdaptedModel
from torch import nn
from torch.utils.data import Dataset

CONSTRUCTOR = dict(constructor='nas_lora.StageWiseOptimWrapperConstructor')
BATCHES = 3  # an epoch has


class Maps(Dataset):
    """Made-up maps; those of a held-out set carry another mark."""

    def __init__(self, number: int, mark: float):
        self.maps = torch.randn(number, 4, 4, 6, generator=torch.Generator().manual_seed(1))
        self.mark = mark

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, i):
        return dict(inputs=self.maps[i], mark=torch.tensor([self.mark, i]))


class Regression(BaseModel):
    """One linear layer that is to give a fixed map; notes what it was given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 6))
        self.head = nn.Linear(6, 1)
        self.seen = []

    def forward(self, inputs, mark, mode='tensor'):
        inputs, mark = torch.stack(list(inputs)), torch.stack(list(mark))
        self.seen.append(mark.tolist())
        y = self.head(self.encoder(inputs))
        return dict(loss=(y - inputs[..., :1].roll(1, 1)).square().mean())


def loader(number: int, mark: float) -> dict:
    return dict(
        dataset=Maps(number, mark),
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )


def made(**options) -> AdaptedModel:
    torch.manual_seed(0)
    adapter = dict(type='nas_lora.NASLoRALinear', parts=['out'], **options)
    return AdaptedModel(Regression(), adapter=adapter, targets=['0'])


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved_between(before: dict, after: dict) -> str:
    """'w' if weights moved, 'a' if architecture parameters did."""
    names = [name for name, value in after.items() if not torch.equal(value, before[name])]
    return ''.join(sorted({'a' if name.endswith('alpha') else 'w' for name in names}))


def trained(tmp_path, name: str, epochs: int = 6, model=None, hook=None, resume=None, **wrapper):
    """A finished run, its model and what moved."""
    MMLogger._instance_dict.clear()
    model = made() if model is None else model
    moved = []
    runner = SafeRunner(
        model=model,
        work_dir=str(tmp_path / name),
        train_dataloader=loader(2 * BATCHES, 0.0),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(CONSTRUCTOR, **wrapper),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=None),
        custom_hooks=[dict(type='nas_lora.StageWiseHook', **(hook or dict(weight_epochs=2)))],
        randomness=dict(seed=0),
        load_from=resume,
        resume=resume is not None,
        experiment_name=f'{tmp_path.name}-{name}',
        log_level='ERROR',
        default_scope='mmpretrain',
    )
    runner.train_loop  # noqa: B018  built on first access
    step = runner.model.train_step

    def watched(data, optim_wrapper):
        before = values(model)
        result = step(data, optim_wrapper)
        moved.append(moved_between(before, values(model)))
        return result

    runner.model.train_step = watched
    runner.train()
    return runner, moved
