"""Every config builds on miniature data and holds the published numbers."""

import ast
import gc
import re
import runpy
import shlex
import shutil
from collections import defaultdict
from copy import deepcopy
from itertools import islice
from math import cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import ParamSchedulerHook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image

from tas_lora import SearchSpace, Subnet, cli
from tas_lora.config import load_config
from tas_lora.engine import MoLEHook
from tas_lora.models.heads import group_wise_bias

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    path.stem: path
    for path in sorted((ROOT / 'configs').rglob('*.py'))
    if '_base_' not in path.parts
}

# AutoFormer (ICCV 2021): space and supernet. TAS-LoRA (CVPR 2026): experts, largest number of
# parameters of a subnet, GPUs that train the experts.
PUBLISHED = dict(
    t=dict(
        space=SearchSpace([192, 216, 240], [12, 13, 14], [3, 4], [3.5, 4.0]),
        arch=Subnet(256, [4] * 14, [4.0] * 14),
        num_experts=12,
        max_params=5.9e6,
        gpus=4,
    ),
    s=dict(
        space=SearchSpace([320, 384, 448], [12, 13, 14], [5, 6, 7], [3.0, 3.5, 4.0]),
        arch=Subnet(448, [7] * 14, [4.0] * 14),
        num_experts=27,
        max_params=22.9e6,
        gpus=8,
    ),
    b=dict(
        space=SearchSpace([528, 576, 624], [14, 15, 16], [9, 10], [3.0, 3.5, 4.0]),
        arch=Subnet(640, [10] * 16, [4.0] * 16),
        num_experts=18,
        max_params=54.0e6,
        gpus=8,
    ),
)
SEARCH = dict(population=50, generations=20, parents=10, gene_prob=0.2, shape_prob=0.4)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """On tensors this small, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """A folder with ``imagenet``, 1,000 classes of one image, and the small data sets."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for i in range(1000):
        for split in ('train', 'val'):
            folder = root / 'imagenet' / split / f'n{i:08d}'
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / 'x.JPEG')
    for name in 'ABCDEFGHIJ':
        for split, count in (('train', 12), ('test', 2)):
            folder = root / 'image_folder' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    write_idx = runpy.run_path(ROOT / 'tools' / 'prepare_digits.py')['write_idx']
    for folder, side in (('digits', 8), ('fashion_mnist', 28)):
        (root / folder).mkdir()
        for name, n in (('train', 200), ('t10k', 20)):
            images = root / folder / f'{name}-images-idx3-ubyte'
            write_idx(images, rng.integers(0, 256, (n, side, side)))
            write_idx(images.with_name(f'{name}-labels-idx1-ubyte'), rng.integers(0, 10, n))
    return root


def redirect(node, data: Path) -> None:
    """Point ``node`` and all below it to ``data``, read by this process alone."""
    if isinstance(node, dict):
        if 'data_root' in node:
            node['data_root'] = str(data / Path(node['data_root']).name)
        if node.get('type') == 'tas_lora.HeldOutSplit':
            node['size'] = min(node['size'], 20)
        if 'num_workers' in node:
            node.update(num_workers=0, persistent_workers=False)
    if isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            redirect(value, data)


@pytest.fixture(scope='module')
def runner(request, data, tmp_path_factory):
    """The runner of the config named by the parameter, with all it has built."""
    cfg = load_config(CONFIGS[request.param])
    redirect(dict(cfg.items()), data)
    work_dir = tmp_path_factory.mktemp(request.param)
    cfg.work_dir, cfg.experiment_name, cfg.load_from = str(work_dir), work_dir.name, None
    runner = Runner.from_cfg(cfg)
    if runner.train_loop is not None:  # loops are built on first access
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    yield runner
    del runner
    gc.collect()


@pytest.fixture
def published(runner) -> dict:
    """What is published of the size, T, S or B, of ``runner``."""
    return PUBLISHED[name_of(runner).split('_')[1]]


def built(*names: str):
    """Parametrize over the runners of these configs; each is built once, and alone."""
    cases = [pytest.param(name, marks=pytest.mark.full) for name in names]
    return pytest.mark.parametrize('runner', cases, indirect=True)


def of_sizes(*stages: str):
    return built(*(f'autoformer_{size}_{stage}' for size in PUBLISHED for stage in stages))


def name_of(runner) -> str:
    return Path(runner.cfg.filename).stem


def header(name: str) -> str:
    return ast.get_docstring(ast.parse(CONFIGS[name].read_text()))


def gpus(name: str) -> int:
    return int(re.search(r'GPUs: (\d+)', header(name)).group(1))


def first_batch(loader, size: int) -> dict:
    """What ``loader`` would read first, of another batch size."""
    return loader.collate_fn([loader.dataset[i] for i in islice(loader.sampler, size)])


def identities(dataset) -> list:
    """What tells the images of a dataset apart: path, or pixels."""
    infos = map(dataset.get_data_info, range(len(dataset)))
    return [info.get('img_path') or info['img'].tobytes() for info in infos]


@pytest.mark.parametrize('name', CONFIGS)
def test_header_says_what_where_and_how(name):
    text = header(name)
    assert re.search(r'^GPUs: \d', text, re.MULTILINE)
    assert 'op-1' in text
    place = re.escape(str(CONFIGS[name].relative_to(ROOT)))
    command = re.search(rf'^(python )?(tools/\S+) {place}', text, re.MULTILINE)
    assert (ROOT / command.group(2)).is_file()


@pytest.mark.parametrize('name', CONFIGS)
def test_stages_follow_each_other(name):
    checkpoint = load_config(CONFIGS[name]).load_from
    if name.endswith('_search'):  # the tool takes the checkpoint
        checkpoint = re.search(r'work_dirs/\S+', header(name)).group()
    if str(checkpoint).startswith('exported/'):  # as tools/export.py is told in the README
        arch = load_config(CONFIGS[name]).model.backbone.arch
        assert (Path(arch).parent, Path(arch).name) == (
            Path(checkpoint).parent,
            'architecture.json',
        )
        size = 's' if 'transfer' in CONFIGS[name].parts else name.split('_')[1]
        assert Path(arch).parent.name == f'autoformer_{size}'
    elif 'pretrained' in CONFIGS[name].parts:
        is_first = name.endswith('original')  # of tools/supernet_from.py, then of tools/order.py
        assert checkpoint == ('original/supernet.pth' if is_first else 'ordered/ordered.pth')
    elif checkpoint is not None:
        folder, stage, file = checkpoint.split('/')
        assert folder == 'work_dirs'
        assert file == f'epoch_{load_config(CONFIGS[stage]).train_cfg.max_epochs}.pth'


@built(*(name for name in CONFIGS if re.fullmatch(r'\w+_(supernet|moLE|search)', name)))
def test_batches_reach_the_model(runner):
    spec = runner.model.image_spec
    shape = (4, spec['in_channels'], spec['img_size'], spec['img_size'])
    for loop in filter(None, (runner.train_loop, runner.val_loop, runner.test_loop)):
        assert len(loop.dataloader) > 0
        batch = first_batch(loop.dataloader, 4)
        batch = runner.model.data_preprocessor(batch, training=loop is runner.train_loop)
        assert batch['inputs'].shape == shape
        assert batch['inputs'].abs().max() < 10  # normalised, and no NaN
        assert len(batch['data_samples']) == 4
    if runner.model.router is not None:
        assert sum(isinstance(hook, MoLEHook) for hook in runner.hooks) == 1


@of_sizes('supernet', 'moLE')
def test_published_training(runner, published):
    name, space = name_of(runner), published['space']
    assert runner.model.backbone.arch == published['arch']
    assert runner.train_loop.space == space
    for loop in (runner.val_loop, runner.test_loop):
        assert loop.subnets == dict(smallest=space.smallest(), largest=space.largest())
    assert runner.max_epochs == (50 if name.endswith('moLE') else 500)
    assert gpus(name) == (published['gpus'] if name.endswith('moLE') else 8)
    assert gpus(name) * runner.train_dataloader.batch_sampler.inner.batch_size == 1024


@of_sizes('supernet')
def test_published_optimizer_of_the_supernet(runner, published):
    optimizer = runner.optim_wrapper.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert {group['initial_lr'] for group in optimizer.param_groups} == {1e-3}
    decay = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert len(decay) == 4 + 16 * published['arch'].depth + 4  # tensors of AutoFormer
    for name, parameter in runner.model.named_parameters():
        exempt = re.search(r'norm\.|\.bias$|\.cls_token$|\.pos_embed$', name)
        assert decay[parameter] == (0 if exempt else 0.05), name


@of_sizes('moLE', 'search')
def test_published_experts(runner, published):
    model, K = runner.model, published['num_experts']
    layers = list(model.backbone.mole_layers())
    assert len(layers) == 4 * published['arch'].depth
    assert {layer.lora_a.shape[:2] for layer in layers} == {(K, 8)}
    assert model.router.space == published['space']
    bias = group_wise_bias(K, max(model.router.space.depth), beta=3.0)
    assert torch.equal(model.router.head_bias, bias)


@of_sizes('moLE')
def test_published_optimizers_of_the_experts(runner, published):
    hook = next(hook for hook in runner.hooks if isinstance(hook, MoLEHook))
    assert hook.router_warmup_epochs == 5
    experts, router = (runner.optim_wrapper[name].optimizer for name in ('experts', 'router'))
    assert type(experts) is torch.optim.AdamW
    assert experts.param_groups[0]['initial_lr'] == 5e-4
    assert type(router) is torch.optim.SGD
    assert router.param_groups[0]['initial_lr'] == 0.1


@of_sizes('search')
def test_published_search(runner, published):
    search = runner.val_loop.settings
    assert search.space == published['space']
    assert search.limits.ranges == dict(params=(0, published['max_params']))
    assert search.limits.allow(search.space.smallest())
    assert {field: vars(search.evolution)[field] for field in SEARCH} == SEARCH
    assert search.score == 'cross_entropy'


@pytest.mark.full
@pytest.mark.parametrize(
    'family', ['autoformer_t', 'autoformer_s', 'autoformer_b', 'digits', 'folder']
)
def test_search_sees_images_that_no_training_saw(family, data):
    def read(stage: str, loader: str) -> list:
        cfg = load_config(CONFIGS[f'{family}_{stage}'])
        redirect(dict(cfg.items()), data)
        return identities(Runner.build_dataloader(cfg[loader], seed=0).dataset)

    if family == 'digits':
        pixels = (data / 'digits' / 'train-images-idx3-ubyte').read_bytes()[16:]
        everything = {pixels[i : i + 64] for i in range(0, len(pixels), 64)}
    else:
        folder = 'image_folder' if family == 'folder' else 'imagenet'
        everything = {str(path) for path in (data / folder / 'train').glob('*/*')}
    heldout = read('search', 'val_dataloader')
    assert len(heldout) > 0
    for stage in ('supernet', 'moLE'):
        assert read(stage, 'heldout_dataloader') == heldout
        trained = set(read(stage, 'train_dataloader'))
        assert not trained & set(heldout)
        assert trained | set(heldout) == everything


@pytest.mark.full
@pytest.mark.parametrize('stage', ['supernet', 'search'])
def test_classes_that_are_not_the_folders_are_told(stage, data):
    cfg = load_config(CONFIGS[f'folder_{stage}'])
    redirect(dict(cfg.items()), data)
    dataset = deepcopy(cfg.val_dataloader.dataset)
    assert DATASETS.build(dataset).metainfo['classes'] == list('ABCDEFGHIJ')
    dataset.dataset.metainfo.classes = ['A', 'B']
    with pytest.raises(AssertionError, match=r'subfolders \(10\).*specified classes \(2\)'):
        DATASETS.build(dataset)


def test_experts_and_supernet_of_a_folder_follow_from_its_space_and_classes(tmp_path):
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    letters = ', '.join(map(repr, 'ABCDEFGHIJ'))
    edits = (
        ('models', 'num_heads=[2, 3]', 'num_heads=[1, 2, 4]'),
        ('datasets', f'classes = [{letters}]', "classes = ['up', 'down', 'a']"),
    )
    for folder, old, new in edits:
        file = tmp_path / 'configs' / '_base_' / folder / 'image_folder.py'
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new))
    cfg = load_config(tmp_path / 'configs' / 'folder_search.py')
    assert cfg.val_cfg.space.num_heads == cfg.model.router.space.num_heads == [1, 2, 4]
    assert cfg.model.backbone.arch.num_heads == [4] * 5
    assert cfg.model.backbone.mole.num_experts == 3 * 3 * 2
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3
    assert cfg.test_dataloader.dataset.metainfo.classes == ['a', 'down', 'up']  # as folders sort


@built('autoformer_t_moLE')
def test_a_step_of_the_warmup_moves_experts_alone(runner):
    model = runner.model
    for layer in model.backbone.mole_layers():  # where they start, at 0, the router has no gradient
        torch.nn.init.normal_(layer.lora_b, std=0.02)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for point in ('before_train', 'before_train_epoch'):
        runner.call_hook(point)
    runner.train_loop.run_iter(0, first_batch(runner.train_dataloader, 2))
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    layers = ('attn.qkv', 'attn.proj', 'fc1', 'fc2')
    assert changed == {
        f'backbone.blocks.{block}.{layer}.{factor}'
        for block in range(model.subnet.depth)
        for layer in layers
        for factor in ('lora_a', 'lora_b')
    }


@built('autoformer_t_supernet')
def test_published_rates_of_the_supernet(runner):
    rates = rates_of_epochs(runner)['lr']
    warmup = [1e-6 + t * (1e-3 - 1e-6) / 20 for t in range(20)]
    # Stepped after each epoch: the first rate is used twice; the cosine counts the warm-up.
    assert rates == pytest.approx([warmup[0], *warmup, *cosine(1e-3, 1e-5, 500)[20:499]])


@built('autoformer_t_moLE')
def test_published_rates_of_the_experts(runner):
    rates = rates_of_epochs(runner)
    assert rates['experts.lr'][0] == 1e-5
    assert rates['experts.lr'][5:] == pytest.approx(cosine(5e-4, 1e-5, 45))
    assert rates['router.lr'][5:] == pytest.approx(cosine(0.1, 0.0, 45))


def options_in_readme(row: str) -> dict:
    """The ``--cfg-options`` of a row of configs/README.md."""
    text = (ROOT / 'configs' / 'README.md').read_text()
    options = re.search(rf'^\| {re.escape(row)} \| `([^`]+)` \|', text, re.MULTILINE).group(1)
    return {k: float(v) if '.' in v else int(v) for k, v in (o.split('=') for o in options.split())}


@pytest.mark.full
@pytest.mark.parametrize('warmup', [0, 3, 10])
def test_warmups_of_the_ablation_as_written_in_the_readme(warmup, data, tmp_path):
    options = options_in_readme(f'warm-up of {warmup} epochs')
    cfg = load_config(CONFIGS['autoformer_t_moLE'], options)
    redirect(dict(cfg.items()), data)
    cfg.work_dir, cfg.experiment_name, cfg.load_from = str(tmp_path), tmp_path.name, None
    runner = Runner.from_cfg(cfg)
    rates = rates_of_epochs(runner)
    assert rates['experts.lr'][warmup:] == pytest.approx(cosine(5e-4, 1e-5, 50 - warmup))
    assert rates['router.lr'][warmup:] == pytest.approx(cosine(0.1, 0.0, 50 - warmup))
    assert warmup == 0 or rates['experts.lr'][0] == 1e-5
    hook = next(hook for hook in runner.hooks if isinstance(hook, MoLEHook))
    assert hook.router_warmup_epochs == warmup


@pytest.mark.parametrize(
    ('stage', 'rows'), [('autoformer_t_moLE', 9), ('autoformer_t_supernet', 4)]
)
def test_every_row_of_options_in_the_readme_is_taken(stage, rows):
    text = (ROOT / 'configs' / 'README.md').read_text()
    section = text.split(f'tools/dist_train.sh configs/{stage}.py')[-1].split('\n\n')[1]
    options = re.findall(r'^\| (?!option|row)[^|]+ \| `([^`]+)`', section, re.MULTILINE)
    assert len(options) == rows
    for row in options:
        arguments = [str(CONFIGS[stage]), '--cfg-options', *shlex.split(row)]
        args = cli.config_parser('').parse_args(arguments)
        assert load_config(args.config, args.cfg_options) is not None


@pytest.mark.parametrize('name', CONFIGS)
def test_table_lists_every_config_with_its_command(name):
    text = (ROOT / 'configs' / 'README.md').read_text()
    row = re.search(rf'^\| `{CONFIGS[name].relative_to(ROOT / "configs")}` .*$', text, re.MULTILINE)
    cells = [cell.strip() for cell in row.group().split('|')]
    assert cells[7] == str(gpus(name))
    assert cells[8].strip('`') in header(name)


def rates_of_epochs(runner) -> dict[str, list[float]]:
    """Learning rates at the start of each epoch, from fresh optimizers and schedulers."""
    runner.optim_wrapper = runner.build_optim_wrapper(deepcopy(runner.cfg.optim_wrapper))
    runner.param_schedulers = runner.build_param_scheduler(deepcopy(runner.cfg.param_scheduler))
    hook, rates = ParamSchedulerHook(), defaultdict(list)
    for _ in range(runner.max_epochs):
        for name, values in runner.optim_wrapper.get_lr().items():
            rates[name].append(values[0])
        for i in range(len(runner.train_dataloader)):
            hook.after_train_iter(runner, i)
        hook.after_train_epoch(runner)
    return rates


def cosine(start: float, end: float, epochs: int) -> list[float]:
    return [end + (start - end) * (1 + cos(pi * t / epochs)) / 2 for t in range(epochs)]
