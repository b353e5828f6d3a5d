"""Loss and metrics against formulas written out in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nas_lora.segmentation.losses import StructureLoss, border_weight, structure_loss
from nas_lora.segmentation.metrics import MaskMetrics

from tas_lora import UserError


def plain_weight(mask: np.ndarray, kernel: int) -> np.ndarray:
    """1 + 5 |mean of the window - pixel| with zeros outside, pixel by pixel."""
    H, W = mask.shape
    reach, weight = kernel // 2, np.empty((H, W))
    for y in range(H):
        for x in range(W):
            window = mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            weight[y, x] = 1 + 5 * abs(window.sum() / kernel**2 - mask[y, x])
    return weight


def plain_loss(logits: np.ndarray, masks: np.ndarray, kernel: int) -> float:
    losses = []
    for logit, mask in zip(logits[:, 0], masks[:, 0], strict=True):
        w, p = plain_weight(mask, kernel), 1 / (1 + np.exp(-logit))
        bce = -(mask * np.log(p) + (1 - mask) * np.log(1 - p))
        both, sums = (w * p * mask).sum(), (w * (p + mask)).sum()
        losses.append((w * bce).sum() / w.sum() + 1 - (both + 1) / (sums - both + 1))
    return float(np.mean(losses))


@pytest.mark.parametrize('kernel', [1, 3, 31])
def test_structure_loss_is_its_formula(kernel):
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(size=(3, 1, 12, 9)), 1.0 * (rng.random((3, 1, 12, 9)) < 0.4)
    masks[2] = 0  # an image without object
    loss = StructureLoss(kernel)(torch.tensor(logits), torch.tensor(masks))
    assert loss.item() == pytest.approx(plain_loss(logits, masks, kernel), rel=1e-12)


def test_weights_are_highest_where_a_pixel_differs_from_all_around():
    masks = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    masks[0, 0, 4, 4] = 1
    weight = border_weight(masks, 3)[0, 0]
    assert weight[4, 4].item() == pytest.approx(1 + 5 * 8 / 9)
    assert weight[4, 5].item() == pytest.approx(1 + 5 / 9)
    assert weight[0, 0] == 1


def test_a_perfect_mask_has_nearly_no_loss_and_its_opposite_much():
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., 8:24, 8:24] = 1
    right = (masks - 0.5) * 40
    assert structure_loss(right, masks) < 1e-4
    assert structure_loss(-right, masks) > 15


@pytest.mark.parametrize('kernel', [0, 2, -3, 1.5, True])
def test_windows_that_have_no_middle_are_refused(kernel):
    with pytest.raises(UserError, match='StructureLoss.kernel_size must be'):
        StructureLoss(kernel)


def evaluate(pairs, batch: int = 2, **options) -> dict[str, float]:
    """Metrics of (probability, mask) pairs, as the evaluator hands them over."""
    metric = MaskMetrics(**options)
    samples = [dict(pred_mask=torch.tensor(p), mask=torch.tensor(m)) for p, m in pairs]
    for i in range(0, len(samples), batch):
        metric.process({}, samples[i : i + batch])
    return metric.evaluate(len(samples))


def sets(pairs) -> list[tuple[set, set, int]]:
    """Pixels found and pixels true as sets, and the number of all."""
    return [
        ({*zip(*np.nonzero(p > 0.5), strict=True)}, {*zip(*np.nonzero(m), strict=True)}, m.size)
        for p, m in pairs
    ]


@st.composite
def masks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.05, 0.3, 0.7]))
    shape = (draw(st.integers(2, 5)), draw(st.integers(2, 5)))
    pairs = [
        (rng.random(shape).astype(np.float32), (rng.random(shape) < share).astype(np.uint8))
        for _ in range(draw(st.integers(1, 4)))
    ]
    pairs[0][1].flat[0], pairs[0][1].flat[-1] = 0, 1  # both kinds of pixels
    return pairs


@settings(derandomize=True, deadline=None, max_examples=40)
@given(masks())
def test_metrics_are_those_of_sets_of_pixels(pairs):
    found = evaluate(pairs)
    ious = [len(a & b) / len(a | b) if a | b else 1 for a, b, _ in sets(pairs)]
    dices = [2 * len(a & b) / (len(a) + len(b)) if a or b else 1 for a, b, _ in sets(pairs)]
    hits = sum(len(a & b) for a, b, _ in sets(pairs)) / sum(len(b) for _, b, _ in sets(pairs))
    background = sum(size - len(b) for _, b, size in sets(pairs))
    misses = sum(size - len(a | b) for a, b, size in sets(pairs)) / background
    assert found['iou'] == pytest.approx(np.mean(ious))
    assert found['dice'] == pytest.approx(np.mean(dices))
    assert found['ber'] == pytest.approx((1 - hits + 1 - misses) / 2)
    assert found['mae'] == pytest.approx(np.mean([np.abs(p - m).mean() for p, m in pairs]))
    pooled = evaluate(pairs, average='dataset', metrics=['iou', 'dice'])
    both, either = (sum(map(len, x)) for x in zip(*((a & b, a | b) for a, b, _ in sets(pairs))))  # noqa: B905
    assert pooled['iou'] == pytest.approx(both / either)
    assert pooled['dice'] == pytest.approx(2 * both / (both + either))


def test_two_ranks_give_what_one_does_and_count_repeated_images_once(monkeypatch):
    rng = np.random.default_rng(1)
    pairs = [(rng.random((4, 4)), (rng.random((4, 4)) < 0.5).astype(np.uint8)) for _ in range(5)]
    samples = [dict(pred_mask=torch.tensor(p), mask=torch.tensor(m)) for p, m in pairs]
    ranks = [MaskMetrics(), MaskMetrics()]
    ranks[0].process({}, [samples[0], samples[2], samples[4]])
    ranks[1].process({}, [samples[1], samples[3], samples[0]])  # the sampler begins anew
    # What MMEngine's collect_results does with the lists of two processes.
    merged = [r for pair in zip(*(rank.results for rank in ranks), strict=True) for r in pair][:5]
    assert ranks[0].compute_metrics(merged) == pytest.approx(evaluate(pairs))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(metrics=['jaccard']), 'MaskMetrics.metrics must be some of'),
        (dict(metrics=[]), 'MaskMetrics.metrics must be some of'),
        (dict(average='macro'), "MaskMetrics.average must be 'image' or 'dataset'"),
        (dict(threshold=1.5), 'MaskMetrics.threshold must be a number from 0 to 1'),
        (dict(collect_device='tpu'), 'MaskMetrics.collect_device'),
    ],
)
def test_metrics_refuse_what_they_do_not_know(options, message):
    with pytest.raises(UserError, match=message):
        MaskMetrics(**options)


def test_metrics_refuse_masks_that_they_cannot_compare():
    with pytest.raises(UserError, match=r'a predicted mask is \(4, 4\), the true one \(8, 8\)'):
        evaluate([(np.zeros((4, 4)), np.zeros((8, 8)))])
    empty = [(np.zeros((4, 4)), np.zeros((4, 4)))]
    with pytest.raises(UserError, match="'ber' needs pixels of objects and of background"):
        evaluate(empty)
    assert evaluate(empty, metrics=['iou', 'mae']) == dict(iou=1, mae=0)
