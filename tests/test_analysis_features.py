"""Feature similarity: the formulas, what a feature is, and that looking changes nothing."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from analysed import (
    SMALL,
    WIDE,
    analyse,
    named,
    result,
    write_alone,
    write_checkpoint,
    write_config,
)
from conftest import call_tool
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import SPACE, every, images, randomize, repeatable, tiny_model

from tas_lora import SearchSpace, UserError
from tas_lora.analysis.features import (
    evaluating,
    feature_similarity,
    linear_cka,
    off_diagonal,
    penultimate_features,
    spread,
)
from tas_lora.config import load_config

SUBNETS = [SPACE.smallest(), every(SPACE)[5], SPACE.largest()]


def random_features(seed: int, count: int = 4, images: int = 6) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    widths = rng.integers(2, 7, count)
    return [torch.from_numpy(rng.normal(size=(images, width))) for width in widths]


@given(st.integers(0, 10**6))
@repeatable
def test_cosine_is_that_of_the_shared_channels_image_by_image(seed):
    features = random_features(seed)
    got = feature_similarity(features)
    for i, a in enumerate(features):
        for j, b in enumerate(features):
            width = min(a.shape[1], b.shape[1])
            cosines = []
            for one, other in zip(a.numpy(), b.numpy(), strict=True):
                one, other = one[:width], other[:width]
                size = np.sqrt((one**2).sum() * (other**2).sum())
                cosines.append((one * other).sum() / size)
            assert got[i, j] == pytest.approx(np.mean(cosines), abs=1e-12)


def test_cosine_goes_by_image_not_by_all_numbers_at_once():
    a = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    b = torch.tensor([[-1.0, 0.0, 7.0], [0.0, 1.0, 7.0]])
    assert feature_similarity([a, b])[0, 1] == 0  # -1 and 1


@given(st.integers(0, 10**6))
@repeatable
def test_linear_cka_is_hsic_normalised(seed):
    features = random_features(seed)
    count = len(features[0])
    centre = np.eye(count) - 1 / count

    def hsic(x, y):
        return np.trace(x @ x.T @ centre @ y @ y.T @ centre)

    got, arrays = linear_cka(features), [f.numpy() for f in features]
    expected = [[hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)) for y in arrays] for x in arrays]
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_linear_cka_does_not_see_rotation_and_scale_but_cosine_does():
    x = random_features(3, count=1)[0]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(x.shape[1],) * 2))[0]
    turned = 5 * x @ torch.from_numpy(rotation)
    assert linear_cka([x, turned])[0, 1] == pytest.approx(1)
    assert feature_similarity([x, turned])[0, 1] < 0.95
    assert np.isnan(linear_cka([x, torch.ones_like(x)])[0, 1])


def test_spread_leaves_out_the_diagonal_and_what_is_no_number():
    matrix = np.array([[9.0, 1.0, np.nan], [1.0, 9.0, 3.0], [np.nan, 3.0, 9.0]])
    assert spread(matrix) == dict(mean=2, min=1, max=3)
    assert np.isnan(spread(np.ones((1, 1)))['mean'])
    assert off_diagonal(np.arange(9).reshape(3, 3)).tolist() == [1, 2, 5]


@pytest.mark.parametrize('mole', [False, True])
@pytest.mark.parametrize('subnet', SUBNETS)
def test_features_are_what_the_classifier_reads(mole, subnet):
    model = randomize(tiny_model(mole), std=0.3)
    batches = [dict(inputs=list(images(5)[:3])), dict(inputs=list(images(5)[3:]))]
    features = penultimate_features(model, subnet, batches)
    model.set_subnet(subnet)
    logits = features @ model.head.fc.weight[:, : subnet.embed_dim].T + model.head.fc.bias
    torch.testing.assert_close(logits, model(images(5), mode='tensor'))
    assert features.shape == (5, subnet.embed_dim)


def test_experts_change_features():
    model = randomize(tiny_model(), std=0.3)
    batches = [dict(inputs=list(images(2)))]
    with_experts = penultimate_features(model, SUBNETS[0], batches)
    with torch.no_grad():
        for layer in model.backbone.mole_layers():
            layer.lora_b.zero_()
    assert not torch.allclose(with_experts, penultimate_features(model, SUBNETS[0], batches))


@pytest.mark.parametrize('fails', [False, True])
def test_looking_leaves_mode_and_subnet_as_they_were(fails):
    model = tiny_model()
    model.train()
    model.backbone.norm.eval()  # a part that is frozen
    before = [module.training for module in model.modules()]
    model.set_subnet(SUBNETS[1])
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            model.set_subnet(SUBNETS[0])
            model.merge_experts()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == before
    assert model.subnet == SUBNETS[1]
    assert not model.is_merged
    assert torch.is_grad_enabled()


def test_no_images_are_refused():
    with pytest.raises(UserError, match='no images'):
        penultimate_features(tiny_model(), SUBNETS[0], [])


@pytest.fixture
def supernet(tmp_path):
    config = write_config(tmp_path / 'net.py', 'moLE')
    write_checkpoint(config)
    return config


def test_tool_compares_subnets_and_networks_alone(supernet, digits_root, tmp_path):
    alone = [write_alone(tmp_path / f'{i}.py', arch) for i, arch in enumerate((SMALL, WIDE))]
    for seed, config in enumerate(alone):
        write_checkpoint(config, seed)
    nets = ('--nets', named('small', alone[0]), named('wide', alone[1]))
    options = ('--images', 20, '--count', 3, '--cka', '--seed', 4, *nets)
    assert analyse('feature_similarity', supernet, digits_root, *options) == 0
    found = result(supernet, 'feature_similarity')
    assert found['made_by']['seed'] == 4
    digest = sha256(supernet.with_suffix('.pth').read_bytes()).hexdigest()
    assert found['made_by']['checkpoints']['net']['sha256'] == digest
    assert list(found['cosine']) == list(found['cka']) == ['net', 'trained alone']

    draws = SearchSpace(**load_config(supernet).space).sample_distinct(3, np.random.default_rng(4))
    assert list(found['subnets'].values()) == [s.to_dict() for s in draws]
    for panel, size in (('net', 3), ('trained alone', 2)):
        matrix = np.array(found['cosine'][panel]['matrix'])
        np.testing.assert_allclose(matrix, matrix.T)
        np.testing.assert_allclose(np.diag(matrix), 1)
        off = [matrix[i, j] for i in range(size) for j in range(size) if i != j]
        assert found['cosine'][panel]['mean'] == pytest.approx(np.mean(off), abs=1e-5)
        assert min(off) < 0.999
    for measure in ('cosine', 'cka'):
        with Image.open(tmp_path / 'out' / f'feature_{measure}.png') as image:
            assert digest in image.text['Description']
            assert image.width > 500


def test_tool_takes_a_bare_supernet_and_is_repeatable(digits_root, tmp_path):
    config = write_config(tmp_path / 'bare.py', 'supernet')
    write_checkpoint(config)
    options = ('--images', 8, '--subnets', 'smallest', 'largest')
    runs = []
    for _ in range(2):
        assert analyse('feature_similarity', config, digits_root, *options) == 0
        runs.append((tmp_path / 'out' / 'feature_similarity.json').read_text())
    assert runs[0] == runs[1]
    assert result(config, 'feature_similarity')['cosine']['bare']['rows'] == ['smallest', 'largest']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--subnets', 'smallest'), 'one subnet has no other'),
        (('--nets', 'a'), "--nets takes NAME=CONFIG:CHECKPOINT, got 'a'"),
        (('--nets', 'g/a={0}:{1}'), "'g' is one network"),
        (('--beside', 'net={0}:{1}'), "two are called 'net'"),
        (('--beside', 'a/b={0}:{1}'), 'leave out the /'),
        (('--beside', 'a={0}:none.pth'), 'checkpoint none.pth is not a file'),
        (('--images', '0'), '--images must be a positive integer'),
        (('--images', '288'), 'has 287'),
        (('--seed', '-1'), '--seed must be an integer from 0 up'),
        (('--count', '5000'), 'at most 1,000'),
        (('--subnets', 'smallest', 'nothing.json'), 'nothing.json cannot be read'),
    ],
)
def test_tool_refuses_in_one_line(supernet, digits_root, capsys, options, message):
    files = (supernet, supernet.with_suffix('.pth'))
    options = [option.format(*files) for option in options]
    assert analyse('feature_similarity', supernet, digits_root, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert 'Traceback' not in error


def test_one_network_has_no_subnets(digits_root, tmp_path, capsys):
    config = write_config(tmp_path / 'alone.py', 'supernet', 'space = None')
    write_checkpoint(config)
    assert analyse('feature_similarity', config, digits_root) == 2
    assert 'has no space: it is of a single network' in capsys.readouterr().err


def test_subnets_that_do_not_fit_are_told(digits_root, tmp_path, capsys):
    config = write_alone(tmp_path / 'small.py', SMALL)
    write_checkpoint(config)
    assert analyse('feature_similarity', config, digits_root, '--subnets', 'largest') == 2
    assert capsys.readouterr().err.startswith('error: ')


def test_data_is_named_when_it_is_missing(supernet, tmp_path, capsys):
    write_config(supernet, 'moLE', 'heldout_dataloader = None')
    files = (supernet, supernet.with_suffix('.pth'))
    assert call_tool('analysis/feature_similarity.py', *files, '--out', tmp_path / 'out') == 2
    assert "no heldout_dataloader; choose by --data from ['val', 'test']" in capsys.readouterr().err
