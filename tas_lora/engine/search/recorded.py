"""The config inside a search result, made fit to be built: a record is data, not code.

MMEngine imports whatever dotted path a ``type`` names, and its parts read pickles, run what a
server sends, or delete folders if their arguments say so. So a record may name the parts listed
here and nothing else, and its texts may not be addresses or files that are unpickled.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache

from mmengine.config import Config
from mmengine.fileio.handlers.registry_utils import file_handlers
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    TASK_UTILS,
    TRANSFORMS,
    WEIGHT_INITIALIZERS,
    Registry,
)
from mmpretrain.registry import BATCH_AUGMENTS

from ...errors import UserError
from .identity import SECTIONS

_OURS, _MMPRETRAIN = 'tas_lora', 'mmpretrain'
# What each part may do was reviewed; docs/security.md says how. MMPretrain's scope finds
# MMEngine's and MMCV's parts as well.
_PARTS = (
    (MODELS, _OURS, 'SupernetClassifier ElasticViT ElasticClsHead LSTMRouterHead GRURouterHead'),
    (MODELS, _OURS, 'MLPRouterHead SingleExpertHead'),
    (TASK_UTILS, _OURS, 'ArchitectureGroups RandomGroups ParamCountGroups'),
    (LOOPS, _OURS, 'EvolutionarySearchLoop SubnetTestLoop'),
    (HOOKS, _OURS, 'MoLEHook MoLEStatsHook CompileWarmupHook'),
    (HOOKS, _OURS, 'ComplexityAwareLRHook MomentumSeparationHook'),
    (METRICS, _OURS, 'CrossEntropy'),
    (DATASETS, _OURS, 'HeldOutSplit INaturalist2019'),
    (MODELS, _MMPRETRAIN, 'CrossEntropyLoss LabelSmoothLoss FocalLoss AsymmetricLoss SeesawLoss'),
    (MODELS, _MMPRETRAIN, 'LinearClsHead MultiLabelLinearClsHead ClsDataPreprocessor'),
    (MODELS, _MMPRETRAIN, 'ExponentialMovingAverage MomentumAnnealingEMA StochasticWeightAverage'),
    (BATCH_AUGMENTS, _MMPRETRAIN, 'Mixup CutMix ResizeMix'),
    (WEIGHT_INITIALIZERS, _MMPRETRAIN, 'Constant Xavier Normal TruncNormal Uniform Kaiming'),
    (HOOKS, _MMPRETRAIN, 'EMAHook'),
    (EVALUATOR, _MMPRETRAIN, 'Evaluator'),
    (METRICS, _MMPRETRAIN, 'Accuracy SingleLabelMetric ConfusionMatrix MultiLabelMetric'),
    (METRICS, _MMPRETRAIN, 'AveragePrecision'),
    (FUNCTIONS, _MMPRETRAIN, 'pseudo_collate default_collate'),
    (DATA_SAMPLERS, _MMPRETRAIN, 'DefaultSampler SequentialSampler'),
    (DATASETS, _MMPRETRAIN, 'ImageNet ImageNet21k CustomDataset MNIST FashionMNIST CIFAR10'),
    (DATASETS, _MMPRETRAIN, 'CIFAR100 Caltech101 CUB DTD FGVCAircraft Flowers102 Food101'),
    (DATASETS, _MMPRETRAIN, 'OxfordIIITPet Places205 StanfordCars SUN397 MultiLabelDataset VOC'),
    (DATASETS, _MMPRETRAIN, 'ConcatDataset RepeatDataset ClassBalancedDataset KFoldDataset'),
    (TRANSFORMS, _MMPRETRAIN, 'LoadImageFromFile PackInputs Resize ResizeEdge CenterCrop Pad'),
    (TRANSFORMS, _MMPRETRAIN, 'Normalize EfficientNetCenterCrop RandomFlip RandomCrop Compose'),
    (TRANSFORMS, _MMPRETRAIN, 'RandomResizedCrop RandomGrayscale ColorJitter ToNumpy NumpyToPIL'),
    (TRANSFORMS, _MMPRETRAIN, 'PILToNumpy torchvision/Resize torchvision/CenterCrop'),
    (TRANSFORMS, _MMPRETRAIN, 'torchvision/Normalize torchvision/ToTensor torchvision/PILToTensor'),
    (TRANSFORMS, _MMPRETRAIN, 'torchvision/ConvertImageDtype torchvision/Grayscale'),
)
_TYPES = ('type', 'ema_type')  # keys whose texts MMEngine looks up
# Folders that parts write to or delete, and files that MMEngine unpickles.
_FORBIDDEN = ('collect_dir', 'out_dir', 'work_dir', 'out_file_path', 'pretrained', 'checkpoint')
_BACKENDS = ('backend_args', 'file_client_args')  # one of MMEngine's extends sys.path
_LOCAL = (None, {}, dict(backend='local'), dict(backend='disk'))
_UNPICKLED = tuple(f'.{ending}' for ending in file_handlers if ending not in ('json', 'txt'))
_OF_TEST = ('test_cfg', 'test_dataloader', 'test_evaluator')
_ADVICE = (
    '; a record is data and names only parts that come with the toolkit: give the config that you '
    'trust, tools/search.py CONFIG CHECKPOINT --replay RESULT'
)


def recorded_config(config: Mapping, test: bool = False) -> Config:
    """Take from a recorded config what determines the result of the search.

    Args:
        config: ``config`` of a search's identity.
        test: Also take what the test at the end needs.

    Raises:
        UserError: If it names other parts than those that may be named, or arguments that lead to
            code; it names the place.
    """
    kept = {name: config[name] for name in SECTIONS + _OF_TEST * test if name in config}
    for place, node in _dicts(kept, ''):
        for key, value in node.items():
            _check(f'{place}.{key}'.removeprefix('.'), key, value)
    loop = (kept.get('val_cfg') or {}).get('type')
    if loop != 'tas_lora.EvolutionarySearchLoop':
        raise UserError(f'val_cfg.type of the record is {loop!r}, not a search loop{_ADVICE}')
    for name in ('measured', 'ray', 'resume'):  # a cluster's machines exchange pickles
        kept['val_cfg'].pop(name, None)
    _never_download(kept)
    seed = config.get('randomness')
    if isinstance(seed, dict) and all(type(value) in (int, bool) for value in seed.values()):
        kept['randomness'] = seed
    return Config(
        dict(
            default_scope=_MMPRETRAIN,
            visualizer=dict(
                type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
            ),
            **kept,
        )
    )


def _check(place: str, key: str, value) -> None:
    """Refuse an item of a record that leads to code, to another host, or to a file to write."""
    if key in _TYPES and not (isinstance(value, str) and value in _known()):
        raise UserError(f'{place} of the record is {value!r:.100}{_ADVICE}')
    if key in _BACKENDS and value not in _LOCAL:
        raise UserError(f'{place} of the record is {value!r:.100}, expected local files{_ADVICE}')
    if key.startswith('_') or (key in _FORBIDDEN and value is not None):
        raise UserError(f'{place} may not be in a record{_ADVICE}')
    for text in _texts(value):
        if '://' in text or text.lower().endswith(_UNPICKLED):
            raise UserError(
                f'{place} of the record is {text!r:.100}: neither an address nor a file of '
                f'{", ".join(_UNPICKLED)} is opened{_ADVICE}'
            )


@cache
def _known() -> dict[str, object]:
    """The parts that a record may name, by each of their spellings."""
    found = {}
    for registry, scope, names in _PARTS:
        for name in names.split():
            part = _look_up(registry, scope, name)
            spellings = [f'{scope}.{name}'] + [name] * (scope == _MMPRETRAIN)
            if inspect.isclass(part):  # how a config that is pure Python is recorded
                spellings.append(f'{part.__module__}.{part.__qualname__}')
            found |= dict.fromkeys(spellings, part)
    return found


def _look_up(registry: Registry, scope: str, name: str):
    part = registry.get(f'{scope}.{name}')
    return registry.get(name) if part is None else part


def _never_download(node) -> None:
    """Have datasets miss files rather than download them to where the record says."""
    for _, part in _dicts(node, ''):
        kind = _known().get(part.get('type'))
        if inspect.isclass(kind) and 'download' in inspect.signature(kind.__init__).parameters:
            part['download'] = False


def _dicts(node, place: str) -> Iterator[tuple[str, dict]]:
    """All dicts below ``node`` with their places; a list of lists is followed as well."""
    if isinstance(node, dict):
        yield place, node
        for key, value in node.items():
            yield from _dicts(value, f'{place}.{key}')
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _dicts(value, f'{place}.{number}')


def _texts(value) -> Iterator[str]:
    """Texts in a value and in lists in it; those in dicts are looked at with their own keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
