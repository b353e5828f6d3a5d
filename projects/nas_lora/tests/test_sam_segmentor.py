"""The segmentor: its gradients, its modes, and what it refuses."""

import pytest
import torch
from mmpretrain.structures import DataSample
from nas_lora.segmentation.mask_decoder import MaskDecoder
from sam_files import TINY, images, tiny_segmentor

from tas_lora import UserError


def test_every_parameter_gets_a_gradient():
    model = tiny_segmentor()
    samples = [DataSample().set_mask(torch.eye(64)) for _ in range(2)]
    model(images().float(), samples, mode='loss')['loss'].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of all keys alike changes no softmax; rounding alone gives it a gradient.
    assert [name for name in without if not name.endswith('k_proj.bias')] == []


@torch.no_grad()
def test_modes_of_the_segmentor():
    model, pixels = tiny_segmentor(), images().float()
    logits = model(pixels)
    assert logits.shape == (2, 1, 64, 64)
    samples = model(pixels, [DataSample(), DataSample()], mode='predict')
    torch.testing.assert_close(
        torch.stack([s.pred_mask for s in samples]), 1 / (1 + torch.exp(-logits[:, 0]))
    )
    assert len(model(pixels, mode='predict')) == 2
    assert set(model(pixels, [DataSample().set_mask(torch.ones(64, 64))] * 2, mode='loss')) == {
        'loss'
    }


@pytest.mark.parametrize(
    ('samples', 'mode', 'message'),
    [
        (None, 'loss', 'no mask.*nas_lora.LoadMask'),
        ([DataSample(), DataSample()], 'loss', 'no mask'),
        ([DataSample().set_mask(torch.ones(32, 32))] * 2, 'loss', r'masks are \[\(32, 32\)\]'),
        (None, 'fit', "one of 'tensor' or 'loss' or 'predict'"),
    ],
)
def test_segmentor_refuses_what_it_cannot_use(samples, mode, message):
    with pytest.raises(UserError, match=message):
        tiny_segmentor()(images().float(), samples, mode=mode)


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(
        UserError, match='out_channels is 32, SAMSegmentor.decoder.in_channels .* 64'
    ):
        tiny_segmentor(decoder=dict(type='nas_lora.MaskDecoder', embed_dim=64))
    with pytest.raises(UserError, match='SAMSegmentor.encoder.out_channels is None'):
        tiny_segmentor(encoder=dict(type='mmpretrain.ResNet', depth=18))
    with pytest.raises(UserError, match='must be dict.type=.mmpretrain.ViTSAM'):
        tiny_segmentor(encoder=dict(TINY.encoder, out_type='avg_featmap'))
    with pytest.raises(UserError, match='takes no init_cfg; give the file as pretrained'):
        tiny_segmentor(encoder=dict(TINY.encoder, init_cfg=dict(type='Pretrained', checkpoint='x')))
    with pytest.raises(UserError, match='divisible by 8, and its half by num_heads 3'):
        MaskDecoder(32, num_heads=3)
    with pytest.raises(UserError, match='MaskDecoder.depth must be a positive integer'):
        MaskDecoder(32, depth=0)


def test_positions_do_not_depend_on_the_seed():
    first = MaskDecoder(32, num_heads=4, mlp_dim=8)
    torch.manual_seed(7)
    second = MaskDecoder(32, num_heads=4, mlp_dim=8)
    name = 'positional_encoding_gaussian_matrix'
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
