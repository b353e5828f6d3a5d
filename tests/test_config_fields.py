"""Every field of every component of a config: a wrong value is named with what is allowed."""

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

NAN, INF, HUGE = float('nan'), float('inf'), 10**400
ODD = ('abc', [], [[1, 2]], {}, {'a': 1}, 1j)

# What may be wrong where a value of a kind is wanted, and how the message names what is allowed.
KINDS = dict(
    positive=(('1', None, True, -1, 0, 1.5, NAN, INF, HUGE, *ODD), 'must be a positive integer'),
    natural=(('1', None, True, -1, 1.5, NAN, INF, *ODD), 'must be an integer from 0'),
    number=(('1', None, True, -1, 0, NAN, INF, HUGE, *ODD), 'must be a positive number'),
    share=(('1', None, True, -1, 1.5, NAN, INF, HUGE, *ODD), 'must be a number from 0 to 1,'),
    below_1=(('0', None, False, -1, 1, NAN, INF, HUGE, *ODD), 'must be a number from 0 to below 1'),
    rate=(('1', None, True, -1, NAN, INF, HUGE, *ODD), r'must be a number from 0 to 1e\+09'),
    boolean=(('True', None, 0, 1, 1.5, NAN, *ODD), 'must be True or False'),
    choice=((None, True, 0, -1, 1.5, NAN, INF, *ODD), "must be (one of )?'.* or '"),
    some=(
        ('qkv', 'depth', None, True, 0, 1.5, NAN, [], [[1, 2]], ['x'], {}, [None], ['fc1'] * 2),
        r"must be some of \('",
    ),
    space=((None, True, 0, 1.5, NAN, *ODD), 'a search space is a dict of exactly'),
    choices=(('12', None, True, 3, NAN, [], {}), 'must be a list of numbers'),
    subnet=(
        (None, True, 0, 1.5, NAN, *ODD[1:]),
        'a subnet (is a dict|has exactly the fields)',
    ),
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
    """(build, place in a config, argument, kind of value)."""
    backbone, head, router = 'model.backbone', 'model.head', 'model.router'
    yield vit, backbone, 'arch', 'subnet'
    for size in IMAGE:
        yield vit, backbone, size, 'positive'
    yield vit, backbone, 'out_type', 'choice'
    yield vit, backbone, 'drop_path_rate', 'below_1'
    yield vit, backbone, 'init_std', 'number'
    yield vit, backbone, 'compile_blocks', 'boolean'
    yield vit, backbone, 'with_cp', 'boolean'
    yield arch, f'{backbone}.arch: ', 'embed_dim', 'positive'
    yield arch, f'{backbone}.arch: ', 'num_heads', 'choices'
    yield arch, f'{backbone}.arch: ', 'mlp_ratio', 'choices'
    for option in ('num_experts', 'rank', 'layer_experts'):
        yield mole, f'{backbone}.mole', option, 'positive'
    yield mole, f'{backbone}.mole', 'layers', 'some'

    yield cls_head, head, 'num_classes', 'positive'
    yield cls_head, head, 'in_channels', 'positive'
    yield cls_head, head, 'init_std', 'number'
    yield cls_head, head, 'cal_acc', 'boolean'

    for kind in (LSTMRouterHead, GRURouterHead, MLPRouterHead):
        build = with_(kind, space=SPACE_DICT)
        yield build, '', 'space', 'space'
        yield build, router, 'attributes', 'some'
        yield build, router, 'init', 'choice'
        yield build, router, 'hidden_size', 'positive'
        yield build, router, 'beta', 'number'
    for field in SPACE_DICT:
        yield with_(lambda **space: LSTMRouterHead(space), **SPACE_DICT), 'space', field, 'choices'
    yield with_(SingleExpertHead, space=SPACE_DICT), '', 'space', 'space'

    grouping = f'{router}.grouping'
    yield architecture, '', 'space', 'space'
    yield architecture, grouping, 'attributes', 'some'
    for groups in (with_(RandomGroups, **GROUPING), by_params):
        yield groups, grouping, 'num_groups', 'positive'
        yield groups, grouping, 'seed', 'natural'
    yield by_params, grouping, 'samples', 'positive'
    yield by_params, '', 'space', 'space'

    yield classifier, 'model', 'freeze_supernet', 'boolean'
    yield classifier, 'model', 'init_cfg', 'init_cfg'
    yield part('backbone'), backbone, 'init_cfg', 'init_cfg'
    yield part('router'), router, 'init_cfg', 'init_cfg'

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

    schedule = 'param_scheduler (AutoFormerLR)'
    yield scheduler, schedule, 'epochs', 'positive'
    yield scheduler, schedule, 'warmup_epochs', 'natural'
    yield scheduler, schedule, 'warmup_lr', 'rate'
    yield scheduler, schedule, 'min_lr', 'rate'
    yield scheduler, schedule, 'begin', 'natural'
    yield scheduler, schedule, 'end', 'positive'
    yield scheduler, schedule, 'verbose', 'boolean'

    yield SandwichRule, 'train_cfg.strategy', 'num_random', 'natural'
    yield SandwichRule, 'train_cfg.strategy', 'distill', 'boolean'
    yield with_(HeldOutImages, dataloader=DataLoader([0])), 'val_cfg', 'memory_share', 'share'
    for size in ('population', 'generations', 'parents'):
        yield evolution, 'evolution', size, 'positive'
    for size in ('mutations', 'crossovers', 'seed'):
        yield evolution, 'evolution', size, 'natural'
    for probability in ('gene_prob', 'shape_prob'):
        yield evolution, 'evolution', probability, 'share'

    split = with_(held_out_split, dataset=dict(type='FortyImages'), part='train', size=5)
    yield split, 'HeldOutSplit', 'part', 'choice'
    yield split, 'HeldOutSplit', 'size', 'positive'
    yield split, 'HeldOutSplit', 'seed', 'natural'
    yield with_(INaturalist2019, data_root='.', pipeline=[]), 'INaturalist2019', 'split', 'choice'
    yield CrossEntropy, 'CrossEntropy', 'collect_device', 'choice'


def cases():
    for build, place, argument, kind in table():
        values, allowed = KINDS[kind]
        joint = '' if place.endswith(' ') or not place else '.'
        # Errors of a subnet or a space name it after its place in the config.
        field = '' if kind == 'space' else re.escape(f'{place}{joint}{argument}')
        for value in values:
            name = f'{getattr(build, "__name__", place)}-{place}.{argument}-{str(value)[:20]}'
            yield pytest.param(build, argument, value, f'^{field}.*{allowed}', id=name)


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
        r'model.head.topk\[1\] mu',
    ),
    (
        cls_head,
        'topk',
        None,
        'model.head.topk must be a l',
    ),
    (cls_head, 'loss', 3, 'model.head cannot be built'),
    (arch, 'num_heads', [2, 2, 0], r'^model.backbone.arch: num_heads\[2\] must be a positive int'),
    (
        arch,
        'mlp_ratio',
        [2, NAN, 2],
        r'^model.backbone.arch: mlp_ratio\[1\] must be a positive',
    ),
    (mole, 'importance', [['1'] * 4] * 3, 'mole.importance must hold 3 lists, .*got'),
    (mole, 'importance', [[True] * 4] * 3, 'mole.importance must hold 3 lists, .*got'),
    (mole, 'importance', {'a': 1}, "mole.importance must hold 3 lists, .*got {'a': 1}"),
    (vit, 'mole', 3, r'model.backbone.mole is a dict of \(.*got 3'),
    (
        architecture,
        'clusters',
        'depth',
        "grouping.clusters must be a dict of lists of lists, got 'depth'",
    ),
    *(
        (
            architecture,
            'clusters',
            dict(embed_dim=members),
            r'grouping.clusters.embed_dim must hold every choice once: \[16, 24\]',
        )
        for members in (None, 3, 'ab', [16, 24], [[], [16, 24]], [['a'], [16]], [[16, 24, 24]])
    ),
    (
        with_(LSTMRouterHead, space=SPACE_DICT),
        'grouping',
        3,
        'model.router.grouping: there is no 3',
    ),
    (
        with_(LSTMRouterHead, space=SPACE_DICT, init='random'),
        'num_experts',
        0,
        'router.num_experts',
    ),
    (classifier, 'backbone', None, 'model.backbone must be a dict or a Module, got None'),
    (classifier, 'backbone', dict(type='ResNet', depth=18), 'must be a tas_lora.ElasticViT'),
    (classifier, 'backbone', dict(a=1), 'model.backbone.* cannot be built: KeyError: .*type'),
    (classifier, 'neck', 3, 'model.neck must be a dict or a list or a Module, got 3'),
    (classifier, 'data_preprocessor', False, 'model.data_preprocessor must be a dict or a Module'),
    (classifier, 'data_preprocessor', dict(mean=3), 'data_preprocessor .*cannot be built'),
    (classifier, 'train_cfg', 'mixup', "model.train_cfg must be a dict, got 'mixup'"),
    (classifier, 'pretrained', True, 'model.pretrained is True; weights are loaded safely'),
    (classifier, 'head', 3, 'model.head must be a dict with a type, got 3'),
    (classifier, 'head', dict(num_classes=3), 'model.head cannot be built: KeyError: .*type'),
    (classifier, 'router', 'LSTM', "model.router: there is no 'LSTM'; choose from"),
    (part('head'), 'in_channels', 20, 'model.head.in_channels is 20, the backbone is 24 wide'),
    (scheduler, 'warmup_epochs', 501, r'warmup_epochs must be an integer from 0 to 500, got 501'),
    (scheduler, 'by_epoch', False, 'by_epoch must be True'),
    (scheduler, 'last_step', 'x', r'param_scheduler \(AutoFormerLR\) cannot be built'),
    (with_(build_strategy), 'config', 3, 'train_cfg.strategy: there is no 3; choose from'),
    *(
        (
            with_(resolve_subnets, space=SPACE_DICT),
            'subnets',
            value,
            'val_cfg.subnets must be a dict',
        )
        for value in (None, True, 3, 'smallest', [], {}, ['smallest'])
    ),
    (
        with_(resolve_subnets, space=SPACE_DICT, field='test_cfg'),
        'subnets',
        dict(mine=3),
        'test_cfg.subnets.mine: a subnet is a dict',
    ),
    (with_(resolve_subnets, space=None), 'subnets', dict(a='largest'), 'val_cfg.subnets.a is'),
    (with_(resolve_subnets, subnets=dict(a='largest')), 'space', 0, 'a search space is a dict'),
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
    (vit, 'img_size', 'model.backbone would have'),
    (vit, 'in_channels', 'model.backbone would have'),
    (vit, 'head_dim', 'model.backbone would have'),
    (vit, 'max_relative_position', 'model.backbone would have'),
    (
        arch,
        'embed_dim',
        'model.backbone would have .*, of at most 4e.09; lower arch, mole',
    ),
    (mole, 'rank', 'mole.rank must be a positive integer, got 100000000; at most 4,096'),
    (mole, 'num_experts', 'mole.num_experts must be .* at most 4,096'),
    (with_(ElasticClsHead, in_channels=24), 'num_classes', 'num_classes must be .* 1,000,000'),
    (with_(ElasticClsHead, num_classes=5), 'in_channels', 'in_channels must be .* at most 100,000'),
    (
        with_(LSTMRouterHead, space=SPACE_DICT),
        'hidden_size',
        'model.router would have .*hidden_size',
    ),
    (
        with_(LSTMRouterHead, space=SPACE_DICT, init='random'),
        'num_experts',
        'model.router would ha',
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
    with pytest.raises(UserError, match='space.depth must be at most 1,000, got 100000000'):
        LSTMRouterHead(SPACE_DICT | dict(depth=[2, 10**8]))


def test_experts_and_ranks_at_the_edge_are_refused_together():
    with pytest.raises(UserError, match='model.backbone would have'):
        mole(num_experts=4096, rank=4096)


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
