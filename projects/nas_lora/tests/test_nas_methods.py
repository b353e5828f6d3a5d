"""The methods of the comparison: what differs between them, and what each trains."""

import pytest
import torch
from nas_lora.comparison import read_masks, trainable, write_masks
from nas_lora.costs import ALPHA_SHARE, build, step_of
from nas_lora.cpu_time import cpu_seconds
from nas_lora.methods import METHODS, Run
from nas_lora.report import markdown, mean_choices, with_spread
from nas_lora.stagewise import alpha_turn, architecture_parameters

DECODER = 39_984
LAYERS, WIDTH, RANK, HIDDEN = 4, 64, 3, 128
CELL = {  # weights of the convolutions of one cell of c channels: depthwise and pointwise
    name: lambda c, k=k: c * k * k + c * c for name, k in dict(three=3, five=5).items()
}


def cell(channels: int, operations: int = 8) -> int:
    convs = 2 * CELL['three'](channels) + 2 * CELL['five'](channels)
    return (0 if operations == 2 else convs) + operations


def nas(channels: int, operations: int = 8) -> int:
    return DECODER + LAYERS * 3 * (RANK * 2 * WIDTH + cell(channels, operations))


@pytest.mark.parametrize(
    ('method', 'expected'),
    [
        ('full', 203_120),
        ('decoder', DECODER),
        ('lora', DECODER + LAYERS * RANK * (WIDTH + 3 * WIDTH)),
        ('adapter', DECODER + LAYERS * 2 * (2 * WIDTH * 8 + WIDTH + 8)),
        ('vpt', DECODER + LAYERS * 5 * WIDTH),
        ('nas_lora', nas(3)),
        ('nas_pc_lora', nas(2)),
        ('nas_pc_third', nas(1)),
        ('nas_fold', nas(3, 7)),
        ('nas_token', nas(3, 2)),
        ('uniform', nas(3) - LAYERS * 3 * 8),
    ],
)
def test_methods_train_what_they_say(method, expected):
    assert trainable(build(method, 'tiny')) == expected


def test_methods_differ_in_adapter_optimizer_and_stages_only():
    harness = Run('decoder', 0).config('data', 'sam.pth').to_dict()
    for method in METHODS:
        config = Run(method, 0).config('data', 'sam.pth').to_dict()
        for part in (harness, config):
            for name in ('optim_wrapper', 'custom_hooks', 'filename'):
                part.pop(name, None)
        model = {k: v for k, v in config.pop('model').items() if k in ('type', 'model')}
        assert (config, model) == (
            {k: v for k, v in harness.items() if k != 'model'},
            harness['model'],
        )


def test_a_run_has_its_own_seed_data_start_and_rate():
    for method, place in (('lora', ''), ('nas_lora', 'weights')):
        cfg = Run(method, 7, 0.5).config('here', 'sam.pth')
        optimizer = cfg.optim_wrapper[place].optimizer if place else cfg.optim_wrapper.optimizer
        assert (optimizer.lr, cfg.randomness.seed) == (0.5, 7)
        assert cfg.test_dataloader.dataset.data_root == 'here/test'
        assert cfg.model.model.pretrained == 'sam.pth'
    assert Run('nas_lora', 7, 0.5).name != Run('nas_lora', 7).name


def test_the_share_of_batches_that_train_alpha_is_that_of_the_schedule():
    turns = [alpha_turn(epoch, i, 6, 10, 'batch') for epoch in range(40) for i in range(6)]
    assert sum(turn is not None for turn in turns) / len(turns) == ALPHA_SHARE


@pytest.mark.parametrize('alpha', [False, True])
def test_a_step_that_is_timed_moves_what_it_is_to(alpha):
    torch.manual_seed(0)
    model = build('nas_fold', 'tiny')
    for name, value in model.named_parameters():
        if name.endswith('up.weight'):
            torch.nn.init.normal_(value)
    searched = {id(p) for p in architecture_parameters(model)}
    before = {id(p): p.detach().clone() for p in model.parameters()}
    step_of(model, 'tiny', alpha)[0]()
    moved = {id(p) for p in model.parameters() if not torch.equal(p, before[id(p)])}
    assert moved == searched if alpha else moved and not moved & searched


def test_jobs_take_turns():
    calls = []
    seconds = cpu_seconds({name: lambda n=name: calls.append(n) for name in 'abc'}, 3)
    assert ''.join(calls) == 'abc' + 'bca' + 'cab' + 'abc'
    assert {name: len(values) for name, values in seconds.items()} == dict(a=3, b=3, c=3)
    assert min(map(min, seconds.values())) >= 0


def test_masks_come_back_as_they_were_written(tmp_path):
    masks = torch.rand(5, 12, 12, generator=torch.Generator().manual_seed(0)).numpy()
    write_masks(masks, tmp_path / 'masks.png')
    read = read_masks(tmp_path / 'masks.png')
    assert read.shape == masks.shape
    assert abs(read - masks).max() <= 0.5 / 255 + 1e-6


def test_tables_and_means_by_hand():
    assert with_spread([0.5, 0.7]) == '0.600 +- 0.141'
    assert with_spread([0.5]) == '0.500'
    assert markdown([['a', 'b'], ['1', '2']]) == '| a | b |\n| --- | ---: |\n| 1 | 2 |'
    runs = [dict(choices={'model.encoder.layers.2.attn.qkv.k': dict(none=x)}) for x in (0.2, 0.6)]
    assert mean_choices(runs) == {'2.k': dict(none=pytest.approx(0.4))}
