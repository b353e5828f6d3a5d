"""Every field of every component of a config: a wrong value is named with what is allowed.

Components are built here by themselves, and name their class; the last tests read whole configs by
the functions behind the tools, and see where in the config a value stands.
"""

import re
from copy import deepcopy

import pytest
import torch
from conftest import ROOT
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from tiny import CLASSES, IMAGE, MOLE, SPACE, SPACE_DICT, images, tiny_config, tiny_model
from torch.utils.data import DataLoader

from tas_lora import UserError
from tas_lora.analysis.subjects import Images
from tas_lora.apis import evaluate, load_supernet, prepare_search, prepare_training
from tas_lora.config import load_config
from tas_lora.datasets import INaturalist2019, held_out_split
from tas_lora.datasets.held_out_images import HeldOutImages
from tas_lora.engine.hooks import (
    ComplexityAwareLRHook,
    MoLEHook,
    MoLEStatsHook,
    MomentumSeparationHook,
    SimilarityHook,
)
from tas_lora.engine.optim import AutoFormerLR
from tas_lora.engine.runner.strategy import SandwichRule, build_strategy
from tas_lora.engine.runner.subnet_val_loop import resolve_subnets
from tas_lora.evaluation import CrossEntropy
from tas_lora.models.backbones import ElasticViT
from tas_lora.models.heads import (
    ArchitectureGroups,
    ElasticClsHead,
    GRURouterHead,
    LSTMRouterHead,
    MLPRouterHead,
    ParamCountGroups,
    RandomGroups,
    SingleExpertHead,
)
from tas_lora.search import Evolution

NAN = float('nan')

# Of what is wrong for a kind of value (test_checks.py has all of it) what tells it from other
# kinds, and how the message names what is allowed.
KINDS = dict(
    positive=((0, 1.5), 'must be a positive integer'),
    natural=((-1, True), 'must be an integer from 0'),
    number=((0, '1'), 'must be a positive number'),
    share=((1.5, NAN), 'must be a number from 0 to 1,'),
    below_1=((1, '0'), 'must be a number from 0 to below 1'),
    rate=((-1, 10**400), r'must be a number from 0 to 1e\+09'),
    boolean=((1, None), 'must be True or False'),
    choice=(('abc', []), "must be (one of )?'.* or '"),
    some=(('qkv', ['fc1'] * 2), r"must be some of \('"),
    space=((0, {'a': 1}), 'must be a dict of exactly'),
    choices=(('12', []), 'must be a list of numbers'),
    subnet=((None, {'a': 1}), 'a subnet (is a dict|has exactly the fields)'),
    init_cfg=(('x', True, 0, 1.5, NAN), 'must be a dict or a list'),
)

VIT = dict(arch=SPACE.largest().to_dict(), **IMAGE)
GROUPING = dict(space=SPACE_DICT, num_groups=4)


@DATASETS.register_module()
class FortyImages(BaseDataset):
    def __init__(self):
        super().__init__(ann_file='', pipeline=[])

    def load_data_list(self) -> list[dict]:
        return [dict(img_path=f'{i // 20}/{i}.jpg', gt_label=0) for i in range(40)]


def arch(**change):
    return ElasticViT(**VIT | dict(arch=VIT['arch'] | change))


def mole(**change):
    return ElasticViT(**VIT, mole=MOLE | change)


def classifier(**change):
    init_default_scope('mmpretrain')
    return MODELS.build(deepcopy(tiny_config()['model'] | change))


def part(name: str):
    """Builds the classifier with a change in one of its parts."""

    def build(**change):
        return classifier(**{name: tiny_config()['model'][name] | change})

    return build


def scheduler(**change):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return AutoFormerLR(optimizer, **dict(epochs=500) | change)


def evolution(**change):
    return Evolution(SPACE, lambda subnet: True, **change)


def with_(component, **valid):
    """``component`` built of its valid arguments but for a change."""
    return lambda **change: component(**valid | change)


vit = with_(ElasticViT, **VIT)
cls_head = with_(ElasticClsHead, num_classes=5, in_channels=24)
lstm = with_(LSTMRouterHead, space=SPACE_DICT)
random_init = with_(LSTMRouterHead, space=SPACE_DICT, init='random')
architecture = with_(ArchitectureGroups, space=SPACE_DICT)
by_params = with_(ParamCountGroups, **GROUPING)
subnets_of = with_(resolve_subnets, space=SPACE_DICT)
heldout = with_(held_out_split, part='train')


def table():
    """(build, what the message names before the argument, argument, kind of value)."""
    backbone, head, model = 'ElasticViT', 'ElasticClsHead', 'SupernetClassifier'
    yield vit, backbone, 'arch', 'subnet'
    for size in IMAGE:
        yield vit, backbone, size, 'positive'
    yield vit, backbone, 'out_type', 'choice'
    yield vit, backbone, 'drop_path_rate', 'below_1'
    yield vit, backbone, 'init_std', 'number'
    yield vit, backbone, 'compile_blocks', 'boolean'
    yield vit, backbone, 'with_cp', 'boolean'
    yield arch, 'ElasticViT.arch', 'embed_dim', 'positive'
    yield arch, 'ElasticViT.arch', 'num_heads', 'choices'
    yield arch, 'ElasticViT.arch', 'mlp_ratio', 'choices'
    for option in ('num_experts', 'rank', 'layer_experts'):
        yield mole, 'ElasticViT.mole', option, 'positive'
    yield mole, 'ElasticViT.mole', 'layers', 'some'

    yield cls_head, head, 'num_classes', 'positive'
    yield cls_head, head, 'in_channels', 'positive'
    yield cls_head, head, 'init_std', 'number'
    yield cls_head, head, 'cal_acc', 'boolean'

    for kind in (LSTMRouterHead, GRURouterHead, MLPRouterHead):
        build, router = with_(kind, space=SPACE_DICT), kind.__name__
        yield build, router, 'space', 'space'
        yield build, router, 'attributes', 'some'
        yield build, router, 'init', 'choice'
        yield build, router, 'hidden_size', 'positive'
        yield build, router, 'beta', 'number'
    for field in SPACE_DICT:
        yield (
            with_(lambda **space: LSTMRouterHead(space), **SPACE_DICT),
            'LSTMRouterHead.space',
            field,
            'choices',
        )
    yield with_(SingleExpertHead, space=SPACE_DICT), 'SingleExpertHead', 'space', 'space'

    yield architecture, 'ArchitectureGroups', 'space', 'space'
    yield architecture, 'ArchitectureGroups', 'attributes', 'some'
    for kind in (RandomGroups, ParamCountGroups):
        yield with_(kind, **GROUPING), kind.__name__, 'num_groups', 'positive'
        yield with_(kind, **GROUPING), kind.__name__, 'seed', 'natural'
    yield by_params, 'ParamCountGroups', 'samples', 'positive'
    yield by_params, 'ParamCountGroups', 'space', 'space'

    yield classifier, model, 'freeze_supernet', 'boolean'
    yield classifier, model, 'init_cfg', 'init_cfg'
    yield part('backbone'), f'{model}.backbone', 'init_cfg', 'init_cfg'
    yield part('router'), f'{model}.router', 'init_cfg', 'init_cfg'

    yield MoLEHook, 'MoLEHook', 'router_warmup_epochs', 'natural'
    yield MoLEStatsHook, 'MoLEStatsHook', 'probes', 'natural'
    yield MoLEStatsHook, 'MoLEStatsHook', 'seed', 'natural'
    for option in ('interval', 'subnets', 'images', 'gate_draws'):
        yield SimilarityHook, 'SimilarityHook', option, 'positive'
    yield SimilarityHook, 'SimilarityHook', 'seed', 'natural'
    yield ComplexityAwareLRHook, 'ComplexityAwareLRHook', 'gamma_max', 'number'
    yield ComplexityAwareLRHook, 'ComplexityAwareLRHook', 'min_fraction', 'below_1'
    yield ComplexityAwareLRHook, 'ComplexityAwareLRHook', 'begin', 'natural'
    yield MomentumSeparationHook, 'MomentumSeparationHook', 'group_by', 'choice'
    yield MomentumSeparationHook, 'MomentumSeparationHook', 'seed', 'natural'

    schedule = 'AutoFormerLR'
    yield scheduler, schedule, 'epochs', 'positive'
    yield scheduler, schedule, 'warmup_epochs', 'natural'
    yield scheduler, schedule, 'warmup_lr', 'rate'
    yield scheduler, schedule, 'min_lr', 'rate'
    yield scheduler, schedule, 'begin', 'natural'
    yield scheduler, schedule, 'end', 'positive'
    yield scheduler, schedule, 'verbose', 'boolean'

    yield SandwichRule, 'SandwichRule', 'num_random', 'natural'
    yield SandwichRule, 'SandwichRule', 'distill', 'boolean'
    yield with_(HeldOutImages, dataloader=DataLoader([0])), '', 'memory_share', 'share'
    for size in ('population', 'generations', 'parents'):
        yield evolution, '', size, 'positive'
    for size in ('mutations', 'crossovers', 'seed'):
        yield evolution, '', size, 'natural'
    for probability in ('gene_prob', 'shape_prob'):
        yield evolution, '', probability, 'share'

    split = with_(held_out_split, dataset=dict(type='FortyImages'), part='train', size=5)
    yield split, 'HeldOutSplit', 'part', 'choice'
    yield split, 'HeldOutSplit', 'size', 'positive'
    yield split, 'HeldOutSplit', 'seed', 'natural'
    yield with_(INaturalist2019, data_root='.', pipeline=[]), 'INaturalist2019', 'split', 'choice'
    yield CrossEntropy, 'CrossEntropy', 'collect_device', 'choice'


def cases():
    for build, place, argument, kind in table():
        values, allowed = KINDS[kind]
        field = '.'.join(filter(None, (place, argument)))
        for value in values:
            name = f'{field}-{str(value)[:20]}'
            yield pytest.param(
                build, argument, value, rf'^{re.escape(field)}:? ?{allowed}', id=name
            )


@pytest.mark.parametrize(('build', 'argument', 'value', 'message'), list(cases()))
def test_a_wrong_value_is_refused_by_its_field(build, argument, value, message):
    with pytest.raises(UserError, match=message) as error:
        build(**{argument: value})
    assert '\n' not in str(error.value)
    if isinstance(value, (int, float, str, type(None))):
        assert repr(value) in str(error.value)


OTHERS = [
    # What is more than one value of a kind
    (
        with_(ElasticClsHead, num_classes=5, in_channels=24, cal_acc=True),
        'topk',
        6,
        r'topk\[0\] .*got 6; at most 5',
    ),
    (
        cls_head,
        'topk',
        (1, 0),
        r'^ElasticClsHead.topk\[1\] mu',
    ),
    (
        cls_head,
        'topk',
        None,
        '^ElasticClsHead.topk must be a l',
    ),
    (cls_head, 'loss', 3, '^ElasticClsHead cannot be built'),
    (arch, 'num_heads', [2, 2, 0], r'^ElasticViT.arch.num_heads\[2\] must be a positive int'),
    (
        arch,
        'mlp_ratio',
        [2, NAN, 2],
        r'^ElasticViT.arch.mlp_ratio\[1\] must be a positive',
    ),
    (mole, 'importance', [['1'] * 4] * 3, 'mole.importance must hold 3 lists, .*got'),
    (mole, 'importance', [[True] * 4] * 3, 'mole.importance must hold 3 lists, .*got'),
    (mole, 'importance', {'a': 1}, "mole.importance must hold 3 lists, .*got {'a': 1}"),
    (vit, 'mole', 3, r'^ElasticViT.mole must be a dict of \(.*got 3'),
    (
        architecture,
        'clusters',
        'depth',
        "^ArchitectureGroups.clusters must be a dict of lists of lists, got 'depth'",
    ),
    *(
        (
            architecture,
            'clusters',
            dict(embed_dim=members),
            r'^ArchitectureGroups.clusters.embed_dim must hold every choice once: \[16, 24\]',
        )
        for members in (None, 3, 'ab', [16, 24], [[], [16, 24]], [['a'], [16]], [[16, 24, 24]])
    ),
    (
        with_(LSTMRouterHead, space=SPACE_DICT),
        'grouping',
        3,
        '^LSTMRouterHead.grouping cannot be 3; choose from',
    ),
    (
        with_(LSTMRouterHead, space=SPACE_DICT, init='random'),
        'num_experts',
        0,
        '^LSTMRouterHead.num_experts must',
    ),
    (
        classifier,
        'backbone',
        None,
        '^SupernetClassifier.backbone must be a dict or a Module, got None',
    ),
    (classifier, 'backbone', dict(type='ResNet', depth=18), 'must be a tas_lora.ElasticViT'),
    (
        classifier,
        'backbone',
        dict(a=1),
        '^SupernetClassifier: backbone.* cannot be built: KeyError: .*type',
    ),
    (classifier, 'neck', 3, '^SupernetClassifier.neck must be a dict or a list or a Module, got 3'),
    (classifier, 'data_preprocessor', False, r'\.data_preprocessor must be a dict or a Module'),
    (classifier, 'data_preprocessor', dict(mean=3), 'data_preprocessor .*cannot be built'),
    (classifier, 'train_cfg', 'mixup', "^SupernetClassifier.train_cfg must be a dict, got 'mixup'"),
    (
        classifier,
        'pretrained',
        True,
        '^SupernetClassifier.pretrained is True; weights are loaded safely',
    ),
    (classifier, 'head', 3, '^SupernetClassifier.head must be a dict with a type, got 3'),
    (
        classifier,
        'head',
        dict(num_classes=3),
        '^SupernetClassifier.head cannot be built: KeyError: .*type',
    ),
    (classifier, 'router', 'LSTM', "^SupernetClassifier.router cannot be 'LSTM'; choose from"),
    (
        part('head'),
        'in_channels',
        20,
        '^SupernetClassifier.head.in_channels is 20, the backbone is 24 wide',
    ),
    (scheduler, 'warmup_epochs', 501, r'warmup_epochs must be an integer from 0 to 500, got 501'),
    (scheduler, 'by_epoch', False, 'by_epoch must be True'),
    (scheduler, 'last_step', 'x', '^AutoFormerLR cannot be built'),
    (with_(build_strategy), 'config', 3, '^strategy cannot be 3; choose from'),
    *(
        (
            with_(resolve_subnets, space=SPACE_DICT),
            'subnets',
            value,
            '^subnets must be a dict',
        )
        for value in (None, True, 3, 'smallest', [], {}, ['smallest'])
    ),
    (
        with_(resolve_subnets, space=SPACE_DICT),
        'subnets',
        dict(mine=3),
        '^subnets.mine: a subnet is a dict',
    ),
    (with_(resolve_subnets, space=None), 'subnets', dict(a='largest'), '^subnets.a is'),
    (with_(resolve_subnets, subnets=dict(a='largest')), 'space', 0, '^space must be a dict'),
    (
        with_(held_out_split, part='train'),
        'dataset',
        'MNIST',
        "must be a dict with a type, got 'MN",
    ),
    (
        with_(held_out_split, part='train'),
        'dataset',
        {},
        'HeldOutSplit.dataset must be a dict with',
    ),
    (
        with_(held_out_split, part='train', dataset=dict(type='FortyImages')),
        'images',
        3,
        "HeldOutSplit.images must be None or 'autoformer', got 3",
    ),
    (with_(INaturalist2019), 'data_root', 3, 'INaturalist2019.data_root must be a folder, got 3'),
    (CrossEntropy, 'prefix', 3, 'CrossEntropy.prefix must be a string or None, got 3'),
]


@pytest.mark.parametrize(('build', 'argument', 'value', 'message'), OTHERS)
def test_a_wrong_value_of_its_own_kind_is_refused(build, argument, value, message):
    with pytest.raises(UserError, match=message):
        build(**{argument: value})


SIZES = [
    (vit, 'img_size', '^ElasticViT would have'),
    (vit, 'in_channels', '^ElasticViT would have'),
    (vit, 'head_dim', '^ElasticViT would have'),
    (vit, 'max_relative_position', '^ElasticViT would have'),
    (
        arch,
        'embed_dim',
        '^ElasticViT would have .*, more than 4e.09; lower arch, mole',
    ),
    (mole, 'rank', 'mole.rank must be a positive integer, got 100000000; at most 4,096'),
    (mole, 'num_experts', 'mole.num_experts must be .* at most 4,096'),
    (with_(ElasticClsHead, in_channels=24), 'num_classes', 'num_classes must be .* 1,000,000'),
    (with_(ElasticClsHead, num_classes=5), 'in_channels', 'in_channels must be .* at most 100,000'),
    (
        with_(LSTMRouterHead, space=SPACE_DICT),
        'hidden_size',
        '^LSTMRouterHead would have .*hidden_size',
    ),
    (
        with_(LSTMRouterHead, space=SPACE_DICT, init='random'),
        'num_experts',
        '^LSTMRouterHead would ha',
    ),
    (by_params, 'num_groups', 'num_groups must be .* at most 4,096'),
    (by_params, 'samples', 'samples must be .* at most 1,000,000'),
    (MoLEStatsHook, 'probes', 'probes must be an integer from 0 to 10,000'),
    (SandwichRule, 'num_random', 'num_random must be an integer from 0 to 1,000'),
]


@pytest.mark.parametrize(('build', 'argument', 'message'), SIZES)
def test_a_size_that_no_machine_holds_is_refused_before_it_is_tried(build, argument, message):
    with pytest.raises(UserError, match=message):
        build(**{argument: 10**8})


def test_a_depth_that_no_list_holds_is_refused():
    with pytest.raises(
        UserError, match='LSTMRouterHead.space.depth must be at most 1,000, got 100000000'
    ):
        LSTMRouterHead(SPACE_DICT | dict(depth=[2, 10**8]))


def test_experts_and_ranks_at_the_edge_are_refused_together():
    with pytest.raises(UserError, match='^ElasticViT would have'):
        mole(num_experts=4096, rank=4096)


# Whole configs: where in them a value stands

HOOKS = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook', probes=-1)]
DYNAS = dict(type='tas_lora.ComplexityAwareLRHook', gamma_max=0)
STAGED = dict(type='tas_lora.AutoFormerLR', epochs=0)
METRIC = dict(type='tas_lora.CrossEntropy', collect_device='tpu')
RANDOM = dict(type='tas_lora.RandomGroups', num_groups=12, seed=-1)
SANDWICH = dict(type='tas_lora.SandwichRule', num_random=-1)
GAPS = dict(embed_dim=[16, 16], depth=[1], num_heads=[1], mlp_ratio=[1.0])
CLASSIC = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
OF_TRAINING = [
    ('supernet', 'model.freeze_supernet', 1, ' must be True or False, got 1'),
    ('supernet', 'model.backbone.img_size', 0, ' must be a positive integer, got 0'),
    ('supernet', 'model.backbone.arch.embed_dim', 0, ' must be a positive integer, got 0'),
    ('supernet', 'model.backbone.arch.num_heads', [2, 0], '[1] must be a positive integer, got 0'),
    ('supernet', 'model.backbone.arch', 3, ': a subnet is a dict with'),
    ('moLE', 'model.backbone.mole.rank', 0, ' must be a positive integer, got 0; at most 4,096'),
    ('supernet', 'model.head.num_classes', 0, ' must be a positive integer, got 0; at most 1,000'),
    ('supernet', 'model.head.in_channels', 20, ' is 20, the backbone is'),
    ('moLE', 'model.router.beta', 0, ' must be a positive number, got 0'),
    ('moLE', 'model.router.space', GAPS, '.embed_dim repeats a choice: [16, 16]'),
    ('moLE', 'model.router.space.depth', [0], '[0] must be a positive integer, got 0'),
    ('moLE', 'model.router.grouping', RANDOM, '.seed must be an integer from 0 up, got -1'),
    ('moLE', 'model.router.grouping', 3, " cannot be 3; choose from dict(type='tas_lora.Arch"),
    ('moLE', 'model.backbone.mole.num_experts', 5, ' is 5, but router.space has 12 groups'),
    ('supernet', 'train_cfg.seed', -1, ' must be an integer from 0 up, got -1'),
    ('supernet', 'train_cfg.max_bad_images', -1, ' must be an integer from 0 up, got -1'),
    ('supernet', 'train_cfg.strategy', SANDWICH, '.num_random must be an integer from 0 to 1,000'),
    ('supernet', 'train_cfg.strategy', 3, " cannot be 3; choose from dict(type='tas_lora.Par"),
    ('supernet', 'train_cfg.space.depth', 3, ' must be a list of numbers, got 3'),
    ('supernet', 'val_cfg.subnets', 3, ' must be a dict that names at least one'),
    ('supernet', 'val_cfg.subnets.mine', 'tiny', " is 'tiny'; give the dict of a subnet"),
    ('supernet', 'val_cfg.subnets.mine', 3, ': a subnet is a dict with'),
    ('supernet', 'optim_wrapper.amp', 'int8', ' must be one of ['),
    ('moLE', 'optim_wrapper.router', 3, ' must be a dict with an optimizer, got 3'),
    ('moLE', 'optim_wrapper.experts', CLASSIC, '.type must be tas_lora.SupernetOptimWrapper, got'),
    ('moLE', 'custom_hooks', HOOKS, '.1.probes must be an integer from 0 to 10,000, got -1'),
    ('supernet', 'custom_hooks', [DYNAS], '.0.gamma_max must be a positive number, got 0'),
    ('supernet', 'param_scheduler', STAGED, '.epochs must be a positive integer, got 0'),
    ('supernet', 'param_scheduler', [STAGED], '.0.epochs must be a positive integer, got 0'),
    ('supernet', 'default_hooks.checkpoint.stop_on_signal', 3, ' must be True or False, got 3'),
    ('supernet', 'val_evaluator', [METRIC], ".0.collect_device must be 'cpu' or 'gpu', got 'tpu'"),
    ('supernet', 'train_dataloader.dataset.dataset.size', 0, ' must be a positive integer, got 0'),
    ('supernet', 'val_dataloader.dataset.size', 10**8, ' is 100000000, but the training set has'),
    (
        'supernet',
        'val_dataloader.dataset.part',
        'test',
        " must be 'train' or 'heldout', got 'test'",
    ),
]
OF_SEARCH = [
    ('finalists', 0, ' must be a positive integer, got 0'),
    ('memory_share', 7, ' must be a number from 0 to 1, got 7'),
    ('fp16', True, " must be False: use precision='bfloat16'"),
    ('space', 3, ' must be a dict of exactly'),
    ('race', 3, ' must be a dict or None, got 3'),
    ('race', dict(first=0), '.first must be a positive integer, got 0'),
    ('race', dict(first=3), '.first is 3: too few images for 20 strata and 20 controls'),
    ('evolution', 3, ' must be a dict, got 3'),
    ('evolution.parents', 0, ' must be a positive integer, got 0'),
    ('evolution.seed', -1, ' must be an integer from 0 up, got -1'),
    ('measure', dict(rounds=0), '.rounds must be a positive integer, got 0'),
    ('measure', dict(runs=3), ' must be a dict of ('),
    ('constraints', [3], ' must be like dict(params=(low, high)), got [3]'),
    ('constraints.params', 5, ' must be (low, high), got 5'),
    ('constraints.params', (-1, 5), ' must be a number from 0 to inf, got -1'),
    ('constraints.depth', (0, 5), " is unknown; choose from ['flops', 'params']"),
    ('goals', ['speed'], ' must be some of ('),
]


def put(cfg, field: str, value) -> None:
    """Set a value where it may stand in a dict."""
    *path, last = field.split('.')
    for key in path:
        cfg = cfg[key]
    cfg[last] = value


@pytest.mark.parametrize(('stage', 'field', 'value', 'message'), OF_TRAINING)
def test_a_training_names_the_place_of_a_wrong_value(digits_config, stage, field, value, message):
    cfg = digits_config(stage)
    put(cfg, field, value)
    with pytest.raises(UserError, match=f'^{re.escape(field + message)}'):
        prepare_training(cfg)


@pytest.mark.parametrize(('field', 'value', 'message'), OF_SEARCH)
def test_a_search_names_the_place_of_a_wrong_value(digits_config, weights, field, value, message):
    cfg = digits_config('search')
    put(cfg, f'val_cfg.{field}', value)
    with pytest.raises(UserError, match=f'^{re.escape(f"val_cfg.{field}{message}")}'):
        prepare_search(cfg, weights)


@pytest.fixture(scope='module')
def weights(shared):
    path = shared / 'weights.pth'
    torch.save(dict(state_dict=load_supernet(ROOT / 'configs/digits_moLE.py').state_dict()), path)
    return path


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('test_cfg.subnets', {}, 'test_cfg.subnets must be a dict that names at least one'),
        ('test_cfg.fp16', 3, 'test_cfg.fp16 must be True or False, got 3'),
        ('test_evaluator', [METRIC], "test_evaluator.0.collect_device must be 'cpu' or 'gpu'"),
    ],
)
def test_a_test_names_the_place_of_a_wrong_value(digits_config, weights, field, value, message):
    cfg = digits_config('moLE')
    put(cfg, field, value)
    with pytest.raises(UserError, match=f'^{re.escape(message)}'):
        evaluate(cfg, weights)


def test_a_model_built_by_itself_names_the_place_of_a_wrong_value():
    cfg = load_config(ROOT / 'configs/digits_moLE.py', {'model.router.hidden_size': 0})
    with pytest.raises(UserError, match='^model.router.hidden_size must be a positive integer'):
        load_supernet(cfg)


def with_batches(dataloader) -> dict:
    """``dataloader`` with batches that its config chooses."""
    return dict(dataloader) | dict(batch_sampler=dict(type='tas_lora.ReplayBatchSampler'))


def test_a_search_that_cannot_choose_images_speaks_of_its_own_dataloader(digits_config, weights):
    cfg = digits_config('search')
    cfg.val_dataloader = with_batches(cfg.val_dataloader)
    with pytest.raises(UserError, match='^val_dataloader.batch_sampler has no effect: images are'):
        prepare_search(cfg, weights)


@pytest.mark.parametrize('loader', ['test_dataloader', 'heldout_dataloader'])
def test_an_analysis_that_cannot_choose_images_speaks_of_its_own_dataloader(digits_config, loader):
    config = with_batches(digits_config('moLE')[loader])
    with pytest.raises(
        UserError, match=f'^{loader}.batch_sampler has no effect: images are chosen'
    ):
        Images(config, 3, 0, loader)


# Labels


def sample(label: int, classes: int = CLASSES) -> DataSample:
    scores = torch.full((classes,), 1 / classes)
    return DataSample().set_gt_label(label).set_pred_score(scores)


LABELS = pytest.mark.parametrize('label', [CLASSES, 100, -1])
MESSAGE = (
    f'label (.*), but there are {CLASSES} classes, 0 to {CLASSES - 1}; '
    'set model.head.num_classes and data_preprocessor.num_classes'
)


@LABELS
def test_the_metric_refuses_a_label_that_is_no_class(label):
    metric = CrossEntropy()
    with pytest.raises(UserError, match=MESSAGE.replace('(.*)', str(label))):
        Evaluator(metric).process([sample(0), sample(label)])


@LABELS
def test_the_loss_refuses_a_label_that_is_no_class(label):
    head = ElasticClsHead(CLASSES, 24)
    with pytest.raises(UserError, match=MESSAGE.replace('(.*)', str(label))):
        head.loss((torch.zeros(2, 24),), [sample(0), sample(label)])
    assert head.loss((torch.zeros(1, 24),), [sample(CLASSES - 1)])['loss'] > 0


@LABELS
@pytest.mark.parametrize('training', [True, False])
def test_a_batch_with_a_label_that_is_no_class_is_refused(label, training):
    """Also where labels become one-hot: mixup."""
    mixup = dict(augments=[dict(type='Mixup', alpha=0.8)])
    data = dict(type='ClsDataPreprocessor', num_classes=CLASSES)
    model = tiny_model(data_preprocessor=data, train_cfg=mixup)
    batch = dict(inputs=images(), data_samples=[sample(0), sample(label)])
    with pytest.raises(UserError, match=MESSAGE.replace('(.*)', str(label))):
        model.data_preprocessor(batch, training)
    batch['data_samples'] = [sample(0), sample(CLASSES - 1)]
    model.data_preprocessor(batch, training)
    model.data_preprocessor(dict(inputs=images()), training)


def test_one_hot_labels_of_another_number_of_classes_are_refused():
    message = 'data_preprocessor.num_classes is 7, model.head.num_classes 5; set both'
    with pytest.raises(UserError, match=message):
        classifier(data_preprocessor=dict(num_classes=7, to_onehot=True))
    classifier(data_preprocessor=dict(num_classes=7))  # of no effect


# Numbers of MMEngine's own


@pytest.mark.parametrize('value', [0, -2, 1.5, True, 'abc', None, NAN, []])
@pytest.mark.parametrize(
    'field',
    [
        'train_cfg.val_interval',
        'default_hooks.checkpoint.interval',
        'train_dataloader.batch_size',
        'val_dataloader.batch_size',
        'test_dataloader.batch_size',
    ],
)
def test_intervals_and_batches_are_positive(field, value):
    with pytest.raises(
        UserError,
        match=f'^{field} must be a positive integer, got {value!r}'.replace('[', '.').replace(
            ']', '.'
        ),
    ):
        load_config(ROOT / 'configs/digits_supernet.py', {field: value})


@pytest.mark.parametrize('value', [-1, 1.5, True, 'abc', None])
@pytest.mark.parametrize('loader', ['train', 'val', 'test'])
def test_workers_are_none_or_more(loader, value):
    field = f'{loader}_dataloader.num_workers'
    with pytest.raises(UserError, match=f'^{field} must be an integer from 0 up, got {value!r}'):
        load_config(ROOT / 'configs/digits_supernet.py', {field: value})
