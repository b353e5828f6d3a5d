"""Images with several labels, from pictures of two digits to an exported network."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call_tool
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, log_loss
from tiny import MOLE, SPACE_DICT, images, tiny_config, tiny_model

from tas_lora import Subnet, UserError, apis, export_subnet, load_supernet
from tas_lora.engine import SandwichRule
from tas_lora.engine.runner.label_check import check_metrics
from tas_lora.evaluation import CrossEntropy
from tas_lora.export.safetensors_format import CARD
from tas_lora.models.plain_vit import load_plain_vit

HEAD = dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=24)
SUBNET = dict(embed_dim=16, num_heads=[1, 2], mlp_ratio=[1.0, 2.0])
SEVERAL = 'several per image: those of sigmoid(logit) >= 0.5'
CLASSES = [f'digit {i}' for i in range(10)]


def draw_pairs(root: Path, part: str, count: int) -> None:
    """Pictures of two digits side by side, 16 x 16, with an annotation file of MMPretrain."""
    digits, rng, items = load_digits(), np.random.default_rng(len(part)), []
    (root / part).mkdir(parents=True)
    for i in range(count):
        pair = rng.integers(len(digits.target), size=2)
        canvas = np.zeros((16, 16), np.uint8)
        canvas[4:12] = np.concatenate(digits.images[pair] * 15, axis=1)
        Image.fromarray(canvas).convert('RGB').save(root / part / f'{i}.png')
        labels = sorted({int(label) for label in digits.target[pair]})
        items.append(dict(img_path=f'{part}/{i}.png', gt_label=labels))
    content = dict(metainfo=dict(classes=CLASSES), data_list=items)
    (root / f'{part}.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def pairs(shared) -> Path:
    root = shared / 'pairs'
    draw_pairs(root, 'train', 240)
    draw_pairs(root, 'test', 40)
    return root


CONFIG = """
_base_ = {base!r}
space = {space}
steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(type='MultiLabelDataset', data_root={root!r}, pipeline=steps)
split = dict(type='tas_lora.HeldOutSplit', size=40, seed=0)
heldout = dict(_delete_=True, **split, part='heldout', dataset=dict(**data, ann_file='train.json'))
model = dict(
    backbone=dict(
        arch=dict(embed_dim=24, num_heads=[2] * 3, mlp_ratio=[2.0] * 3),
        img_size=16, patch_size=4, head_dim=8, mole=dict(num_experts=8, rank=2),
    ),
    head=dict(_delete_=True, type='MultiLabelLinearClsHead', num_classes=10),
    router=dict(type='tas_lora.LSTMRouterHead', space=space),
    freeze_supernet=False,
)
data_preprocessor = dict(num_classes=10, mean=[60] * 3, std=[80] * 3)
train_dataloader = dict(
    batch_size=20,
    num_workers=0,
    dataset=dict(
        _delete_=True, **split, part='train', dataset=dict(**data, ann_file='train.json')
    ),
)
val_dataloader = dict(dataset=heldout)
test_dataloader = dict(
    dataset=dict(_delete_=True, **data, ann_file='test.json', test_mode=True)
)
val_evaluator = dict(_delete_=True, type='AveragePrecision')
test_evaluator = [dict(type='AveragePrecision'), dict(type='MultiLabelMetric', average=None)]
train_cfg = dict(max_epochs=2, val_interval=2, space=space)
val_cfg = dict(space=space)
test_cfg = dict(space=space)
optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    **{{n: dict(optimizer=dict(type='AdamW', lr=1e-3)) for n in ('experts', 'router', 'supernet')}},
)
param_scheduler = None
custom_hooks = [dict(type='tas_lora.MoLEHook')]
"""
SEARCH = """
_base_ = './pairs.py'
val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    race=dict(first=24, strata=1, controls=2),
    evolution=dict(population=4, generations=2, parents=2, mutations=1, crossovers=1),
)
val_evaluator = [
    dict(type='tas_lora.CrossEntropy'), dict(type='AveragePrecision'),
    dict(type='AveragePrecision', average=None, prefix='each'),
]
train_dataloader = None
train_cfg = None
optim_wrapper = None
"""


@pytest.fixture(scope='module')
def trained(pairs, shared) -> Path:
    """A folder with configs, and a work directory of the training and of the search."""
    base = str(ROOT / 'configs' / 'folder_supernet.py')
    text = CONFIG.format(base=base, space=SPACE_DICT, root=str(pairs))
    (shared / 'pairs.py').write_text(text)
    (shared / 'search.py').write_text(SEARCH)
    train = ('train.py', shared / 'pairs.py', '--work-dir', shared / 'work')
    assert call_tool(*train, '--check-only') == 0
    assert not (shared / 'work').exists()
    assert call_tool(*train) == 0
    search = ('search.py', shared / 'search.py', shared / 'work' / 'epoch_2.pth')
    assert call_tool(*search, '--work-dir', shared / 'found', '--test') == 0
    return shared


def exported(folder: Path, *formats: str) -> Path:
    out = folder / '_'.join(['exported', *formats])
    found, weights = folder / 'found' / 'best_subnet.json', folder / 'work' / 'epoch_2.pth'
    options = ('--subnet', found, '--out', out, '--formats', *formats)
    assert call_tool('export.py', folder / 'pairs.py', weights, *options) == 0
    return out


def logits_and_labels(folder: Path, subnet: dict, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a subnet of the supernet, and multi-hot labels, without loaders or metrics."""
    model = load_supernet(Config.fromfile(folder / 'pairs.py'), folder / 'work' / 'epoch_2.pth')
    model.set_subnet(Subnet.from_dict(subnet))
    data = json.loads((folder / 'pairs' / f'{part}.json').read_text())['data_list']
    pixels = [np.asarray(Image.open(folder / 'pairs' / d['img_path'])) for d in data]
    batch = (torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() - 60) / 80
    with torch.no_grad():
        logits = model.eval()(batch).double().numpy()
    return logits, np.array([[int(c in d['gt_label']) for c in range(10)] for d in data])


def test_the_search_scores_the_binary_cross_entropy(trained):
    found = json.loads((trained / 'found' / 'best_subnet.json').read_text())
    logits, labels = logits_and_labels(trained, found['subnet'], 'train')
    held_out = np.random.default_rng(0)
    order = list(range(240))
    held_out.shuffle(order)
    scores, labels = 1 / (1 + np.exp(-logits[order[:40]])), labels[order[:40]]
    expected = np.mean([log_loss(labels[:, c], scores[:, c], labels=[0, 1]) for c in range(10)])
    assert found['cross_entropy'] == pytest.approx(expected, rel=1e-5)
    assert 'each/AP_classwise' not in found
    assert found['multi-label/mAP'] > 0
    tested = found['test']['found']
    logits, labels = logits_and_labels(trained, found['subnet'], 'test')
    precision = 100 * average_precision_score(labels, logits, average='macro')
    assert tested['multi-label/mAP'] == pytest.approx(precision, rel=0.02)  # other interpolation
    assert len(tested['multi-label/recall_classwise']) == 10
    assert (trained / 'found' / 'report.html').is_file()


@pytest.mark.full
def test_mmpretrain_tests_an_export_alike(trained, tmp_path):
    """Its own classifier and head, in MMEngine's own loop, give the metrics of the search."""
    folder = exported(trained, 'mmpretrain')
    cfg = Config.fromfile(folder / 'mmpretrain' / 'config.py')
    assert cfg.model.head.type == 'MultiLabelLinearClsHead'
    cfg.update(work_dir=str(tmp_path), experiment_name='stock', test_cfg=dict(type='TestLoop'))
    cfg.load_from = str(folder / 'mmpretrain' / 'checkpoint.pth')
    metrics = Runner.from_cfg(cfg).test()
    tested = json.loads((trained / 'found' / 'best_subnet.json').read_text())['test']['found']
    assert metrics['multi-label/mAP'] == pytest.approx(tested['multi-label/mAP'], rel=1e-5)


@pytest.mark.full
def test_exports_for_other_libraries(trained):
    folder = exported(trained, 'huggingface', 'timm', 'onnx')  # each is read back and compared
    hub = json.loads((folder / 'huggingface' / 'config.json').read_text())
    assert hub['problem_type'] == 'multi_label_classification'
    for card in (folder / CARD, folder / 'huggingface' / 'README.md'):
        assert SEVERAL in card.read_text()


def test_predict_gives_all_labels_above_a_threshold(trained, tmp_path, capsys):
    folder, out = exported(trained, 'safetensors'), tmp_path / 'out.json'
    description = json.loads((folder / 'architecture.json').read_text())
    assert description['problem_type'] == 'multi_label_classification'
    assert description['threshold'] == 0.5
    assert SEVERAL in (folder / CARD).read_text()
    assert 'every image gets one' not in (folder / CARD).read_text()
    files = sorted((trained / 'pairs' / 'test').glob('*.png'), key=lambda path: int(path.stem))
    found = json.loads((trained / 'found' / 'best_subnet.json').read_text())
    scores = 1 / (1 + np.exp(-logits_and_labels(trained, found['subnet'], 'test')[0]))
    threshold = float(np.median(scores))
    options = ('--out', out, '--threshold', threshold)
    assert call_tool('predict.py', folder, *files, *options) == 0
    for row, entry in zip(scores, json.loads(out.read_text()), strict=True):
        predicted = {p['class_index']: p['probability'] for p in entry['predictions']}
        assert set(predicted) == set(np.flatnonzero(row >= threshold).tolist())
        assert all(row[c] == pytest.approx(p, abs=1e-5) for c, p in predicted.items())
        assert {p['class_name'] for p in entry['predictions']} <= set(CLASSES)
    assert call_tool('predict.py', folder, files[0], '--threshold', 1) == 0
    assert 'none' in capsys.readouterr().out
    assert call_tool('predict.py', folder, files[0], '--threshold', 2) == 2


def of(scores: list[float], labels: list[int], **known) -> dict:
    sample = DataSample().set_pred_score(torch.tensor(scores)).set_gt_label(labels)
    return sample.to_dict() | dict(multi_label=True) | known


def test_loss_of_an_image_with_several_labels():
    metric = CrossEntropy()
    cases = [of([0.9, 0.2, 0.5], [0, 2]), of([0.1, 0.2, 0.5], []), of([0.9, 0.2, 0.5], [1])]
    metric.process(None, cases)
    expected = [(0.9, 0.8, 0.5), (0.9, 0.8, 0.5), (0.1, 0.2, 0.5)]
    assert metric.results == pytest.approx([-sum(map(log, p)) / 3 for p in expected])
    metric.results.clear()
    metric.process(None, [of([1.0, 0.0], [1])])  # a sigmoid that has rounded
    assert np.isfinite(metric.results).all()
    with pytest.raises(UserError, match='the label 3, but there are 3 classes'):
        metric.process(None, [of([0.1, 0.2, 0.5], [3])])
    with pytest.raises(UserError, match=r'labels \[0, 2\], but model.head'):
        metric.process(None, [of([0.1, 0.2, 0.5], [0, 2], multi_label=False)])


def batch_of(*labels) -> dict:
    samples = [DataSample().set_gt_label(label) for label in labels]
    return dict(inputs=list(images(len(labels))), data_samples=samples)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['LinearClsHead', 'VisionTransformerClsHead', HEAD['type']])
def test_linear_heads_of_mmpretrain_are_sliced(kind, tmp_path):
    model = tiny_model(head=HEAD | dict(type=kind)).eval()
    model.set_subnet(SUBNET)
    layer = next(layer for layer in model.head.modules() if isinstance(layer, torch.nn.Linear))
    layer.weight.normal_()
    (feature,) = model.extract_feat(images())
    assert feature.shape == (2, 16)
    expected = feature @ layer.weight[:, :16].T + layer.bias
    torch.testing.assert_close(model(images()), expected)
    net, _ = load_plain_vit(export_subnet(model, SUBNET, tmp_path))
    torch.testing.assert_close(net(images()), expected)


def test_heads_that_cannot_be_sliced_are_refused():
    head = dict(type='StackedLinearClsHead', num_classes=5, in_channels=24, mid_channels=[8])
    with pytest.raises(UserError, match=r'the head, a StackedLinearClsHead, cannot take .* 16 '):
        tiny_model(head=head)
    hidden = HEAD | dict(type='VisionTransformerClsHead', hidden_dim=8)
    with pytest.raises(UserError, match='the head, a VisionTransformerClsHead, cannot take'):
        tiny_model(head=hidden)
    space = SPACE_DICT | dict(embed_dim=[24])  # of a single width
    config = tiny_config(head=head)
    config['model']['backbone']['mole'] = MOLE | dict(num_experts=4)
    config['model']['router'].update(space=space)
    assert load_supernet(config)(images()).shape == (2, 5)


def test_labels_that_do_not_suit_the_head_are_refused():
    single, several = tiny_model().train(), tiny_model(head=HEAD).train()
    for labels in ([0, 2], []):
        with pytest.raises(UserError, match=r'labels \[.*\], but model.head, a ElasticClsHead'):
            single.data_preprocessor(batch_of(1, labels))
    with pytest.raises(UserError, match='the label 5, but there are 5 classes'):
        several.data_preprocessor(batch_of([0, 5]))
    data = several.data_preprocessor(batch_of([0, 2], []), training=True)
    losses = several(**data, mode='loss')
    logits = several(data['inputs']).detach().double().sigmoid()
    right = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    expected = -torch.where(right, logits, 1 - logits).log().sum(1).mean()
    assert losses['loss'].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('model', ['trained', 'single'])
def test_data_of_another_kind_are_refused_before_the_first_batch(trained, digits_config, model):
    if model == 'trained':
        options = {'model.head': dict(type='tas_lora.ElasticClsHead', num_classes=10)}
        options['model.head']['_delete_'] = True
        cfg = apis.load_config(trained / 'pairs.py', options)
        message = r'train_dataloader: an image has the labels \[.*\], but model.head, a ElasticCls'
    else:
        head = dict(_delete_=True, type=HEAD['type'], num_classes=10)
        cfg = digits_config('supernet', options={'model.head': head})
        message = r'train_dataloader: an image has the label \d, .* takes a list'
    cfg.work_dir = str(trained / 'refused')
    with pytest.raises(UserError, match=message):
        apis.check_training(cfg)
    with pytest.raises(UserError, match=message):
        apis.train(cfg)


def test_metrics_of_one_label_are_refused():
    evaluator = Runner.build_evaluator(None, [dict(type='mmpretrain.Accuracy', topk=(1, 6))])
    with pytest.raises(UserError, match='val_evaluator: Accuracy is for images with one label'):
        check_metrics(tiny_model(head=HEAD), evaluator, 'val_evaluator')
    with pytest.raises(UserError, match=r'topk of Accuracy is \(1, 6\), but there are 5 classes'):
        check_metrics(tiny_model(), evaluator, 'val_evaluator')


@torch.no_grad()
def test_scores_of_several_labels_are_of_full_precision():
    """In bfloat16, scores above .996 are 1: a wrong label would cost 100 instead of 6."""
    model = tiny_model(head=HEAD).eval()
    model.head.fc.bias.fill_(7.0)
    model.head.fc.weight.zero_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (sample, _) = model(images(), mode='predict')
    assert sample.pred_score.dtype == torch.float32
    assert sample.pred_score.tolist() == pytest.approx([1 / (1 + np.exp(-7))] * 5, abs=1e-6)


def test_distillation_between_subnets_with_several_labels(trained):
    cfg = apis.load_config(trained / 'pairs.py')
    cfg.work_dir, cfg.experiment_name = str(trained / 'sandwich'), 'sandwich'
    cfg.train_cfg.update(strategy=dict(type='tas_lora.SandwichRule', num_random=0), max_epochs=1)
    runner = apis.prepare_training(cfg)
    assert isinstance(runner.train_loop.strategy, SandwichRule)
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss_smallest').data[0]
    assert np.isfinite(losses).all()
