"""The exported model of transformers, next to transformers' own."""

import json

import pytest
import torch
from test_export import trained_like
from tiny import SPACE, images, tiny_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from tas_lora import export_subnet
from tas_lora.export import Source, huggingface
from tas_lora.export.transformers_vit import TasLoraConfig, TasLoraForImageClassification


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """An export; two of its five classes share a name."""
    model, place = trained_like(tiny_model()), tmp_path_factory.mktemp('huggingface')
    names = ['crane', 'b', 'crane', 'd', 'e']
    source = Source.read(export_subnet(model, SPACE.smallest(), place / 'source', names))
    huggingface.write(source, place)
    return place


def load(folder, **changes) -> TasLoraForImageClassification:
    return TasLoraForImageClassification.from_pretrained(folder, **changes)


class Given(nn.Module):
    """A classifier that gives these logits, whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, _):
        return self.logits


def transformers_own_loss(logits, labels, problem_type: str | None) -> tuple[torch.Tensor, str]:
    """Loss of these logits in transformers' ViT, and the type of problem that it took."""
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config = ViTConfig(
        **sizes, image_size=8, patch_size=4, num_labels=logits.shape[1], problem_type=problem_type
    )
    vit = ViTForImageClassification(config)
    vit.classifier = Given(logits)
    return vit(torch.zeros(len(logits), 3, 8, 8), labels=labels).loss, config.problem_type


CLASSES, SHARES = torch.tensor([4, 0, 2, 2]), torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]] * 4)
VALUES = torch.linspace(-1, 1, 4)


@pytest.mark.parametrize(
    ('problem_type', 'num_labels', 'labels'),
    [
        ('single_label_classification', 5, CLASSES),
        ('multi_label_classification', 5, SHARES),
        ('regression', 5, SHARES),
        ('regression', 1, VALUES),
        (None, 5, CLASSES),
        (None, 5, SHARES),
        (None, 1, VALUES),
        (None, 1, VALUES[:, None]),
    ],
)
def test_losses_are_those_of_transformers(folder, tmp_path, problem_type, num_labels, labels):
    changes = dict(num_labels=num_labels, ignore_mismatched_sizes=True) if num_labels != 5 else {}
    model = load(folder, problem_type=problem_type, **changes)
    output = model(images(4), labels=labels)
    assert output.logits.shape == (4, num_labels)
    expected, kind = transformers_own_loss(output.logits.detach(), labels, problem_type)
    torch.testing.assert_close(output.loss, expected)
    assert model.config.problem_type == kind
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.num_labels == num_labels
    assert again.config.problem_type == kind
    torch.testing.assert_close(again(images(4), labels=labels).loss, expected)


def test_classes_that_share_a_name_are_kept_apart(folder):
    config = TasLoraConfig.from_pretrained(folder)
    assert config.id2label == {0: 'crane (0)', 1: 'b', 2: 'crane (2)', 3: 'd', 4: 'e'}
    assert config.label2id == {name: i for i, name in config.id2label.items()}
    stored = json.loads((folder / 'source' / 'architecture.json').read_text())
    assert stored['classes'] == ['crane', 'b', 'crane', 'd', 'e']


def test_hidden_states_are_what_enters_and_leaves_the_blocks(folder):
    model, seen = load(folder), []
    for block in model.vit.blocks:
        block.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    with torch.no_grad():
        bare = model(images(3))
        seen.clear()
        output = model(images(3), output_hidden_states=True)
    assert bare.hidden_states is None
    assert torch.equal(output.logits, bare.logits)
    expected = [seen[0][0], *(result for _, result in seen)]
    assert len(output.hidden_states) == 1 + len(model.vit.blocks)
    for found, wanted in zip(output.hidden_states, expected, strict=True):
        assert torch.equal(found, wanted)
    assert len(model(images(3), output_hidden_states=True, return_dict=False)) == 2


def test_checkpointing_computes_blocks_twice_and_the_same_gradients(folder):
    gradients, runs = [], []
    for checkpointed in (False, True):
        model, count = load(folder).train(), []
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.vit.blocks[0].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        model(images(4), labels=CLASSES).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        runs.append(len(count))
    assert runs == [1, 2]
    for with_checkpoints, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_checkpoints, without)
