"""Training of a pretrained supernet with the original, frozen, as the teacher."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import broadcast_object_list
from torch import Tensor

from ...checks import bounded, inside, natural, one_of, positive
from ...errors import UserError
from ...models import SupernetClassifier, load_supernet
from ...models.checkpoint import adapt_to_start
from ...models.layers.elastic import slice_parts
from ...models.safe_load import read_state_dict
from ...provenance import sha256
from ...registry import TASK_UTILS
from ...structures import SearchSpace, Subnet
from ..model_access import refuse_accumulation, supernet_of
from .run_files import first_start
from .strategy import (
    SubnetStrategy,
    keeps_largest,
    label_loss,
    sandwich,
    sandwich_names,
    train_on_each,
)

_DRAWS = ('uniform', 'sandwich')
_TEACHER = 'teacher_sha256'  # in the message hub, so also in checkpoints


@TASK_UTILS.register_module()
class ParentDistillation(SubnetStrategy):
    """Subnets learn from the original network, which does not change, with or without labels.

    The loss of a subnet is the sum of up to three, each with a weight: KL divergence of its logits
    from the teacher's; distance of its features, which are the classifier's inputs, from the
    teacher's; and the head's loss from the labels. A narrow subnet's features are compared with
    the first channels of the teacher's, or with all of them through ``model.feature_map``. For
    images with several labels the first is the binary cross-entropy of each class.

    If the supernet is frozen, it is itself the teacher, without its experts. If its weights are
    trained, the teacher is a copy of the file that the training began with, also after a resume.

    Args:
        subnets: 'uniform', one random subnet; 'sandwich', the largest (unless
            ``model.keep_parent``), the smallest, and random ones; or one subnet, as a dict or its
            file, which alone is trained.
        num_random: Number of random subnets of a sandwich.
        logits: Weight of the divergence of logits.
        features: Weight of the distance of features.
        labels: Weight of the labels' loss. At 0 the data need no labels.
        temperature: Both logits are divided by it, and the loss is multiplied by its square
            (Hinton et al., 2015).
        distance: 'cosine', 1 minus the cosine; or 'mse', the mean square. Means over images.
        checkpoint: File of the teacher's weights, by default the training's ``load_from``.

    Raises:
        UserError: If all weights are 0, an argument is out of range, or there is no teacher.
    """

    teachers = 1

    def __init__(
        self,
        subnets: str | Mapping = 'uniform',
        num_random: int = 2,
        logits: float = 1.0,
        features: float = 0.0,
        labels: float = 0.0,
        temperature: float = 1.0,
        distance: str = 'cosine',
        checkpoint: str | None = None,
    ):
        self.only = None if subnets in _DRAWS else one_subnet(subnets)
        one_of(distance, 'distance', tuple(_DISTANCES))
        self.subnets, self.num_random = subnets, natural(num_random, 'num_random', most=1000)
        self.logits = bounded(logits, 'logits', most=1e9)
        self.features = bounded(features, 'features', most=1e9)
        self.labels = bounded(labels, 'labels', most=1e9)
        self.needs_labels = self.labels > 0
        if not self.logits + self.features + self.labels:
            raise UserError('is 0, as are features and labels: there is no loss', 'logits')
        self.temperature = positive(temperature, 'temperature', float)
        self.distance = _DISTANCES[distance]
        if checkpoint is not None and not isinstance(checkpoint, str):
            raise UserError(f'must be a file, got {checkpoint!r}', 'checkpoint')
        self.checkpoint = checkpoint
        self._teacher: SupernetClassifier | None = None
        self._to_note: str | None = None  # the teacher's file, until the first step

    def check(self, runner) -> None:
        """Refuse what does not go with the model, and load the teacher."""
        model = supernet_of(runner)
        if self.subnets == 'sandwich':
            refuse_accumulation(runner, "subnets='sandwich' already accumulates over subnets")
        if model.head is None and self.logits + self.labels:
            raise UserError(
                'must be 0, and labels, too: the model has no head; use features',
                'train_cfg.strategy.logits',
            )
        if model.feature_map is not None and not self.features:
            raise UserError(
                'is 0, so that model.feature_map would learn nothing; leave out one of them',
                'train_cfg.strategy.features',
            )
        if model.head is not None and not model.is_frozen and not self.logits + self.labels:
            runner.logger.warning(
                'train_cfg.strategy: logits and labels are 0, so the head stays as it starts'
            )
        is_map = model.backbone.out_type == 'featmap'
        if self.features and is_map and len(model.backbone.patch_sizes) > 1:
            raise UserError(
                'compares maps of features, which differ in size as the space has several patch '
                "sizes; choose model.backbone.out_type='avg_featmap'",
                'train_cfg.strategy.features',
            )
        self._find_teacher(runner, model)

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """Sample one subnet, or those of a sandwich: largest, smallest, random ones."""
        if self.only:
            return [self.only]
        if self.subnets == 'uniform':
            return [space.sample(rng)]
        return sandwich(space, rng, self.num_random)

    def train_step(self, runner, subnets: list[Subnet], data_batch: dict) -> dict[str, Tensor]:
        """Run the teacher once, backward for each subnet, then step; logs each part of the loss."""
        self._note_teacher(runner)
        model = supernet_of(runner)
        batch = model.data_preprocessor(data_batch, training=True)
        mode = 'distill' if self.logits + self.labels else 'features'
        with runner.optim_wrapper.optim_context(runner.model):
            teacher = (self._teacher or model).parent_outputs(batch['inputs'])

        def losses_of(name: str, batch: dict) -> dict[str, Tensor]:
            outputs = runner.model(inputs=batch['inputs'], mode=mode)
            losses = self._losses(model, outputs, teacher, batch.get('data_samples'))
            return {f'loss_{name}{part}': loss for part, loss in losses.items()}

        return train_on_each(runner, self._named(runner, subnets), batch, losses_of)

    def _named(self, runner, subnets: list[Subnet]) -> dict[str, Subnet]:
        """The subnets by the start of the names of their losses."""
        if self.subnets != 'sandwich':
            return {'': subnets[0]}
        names = sandwich_names(self.num_random)[keeps_largest(runner) :]
        return dict(zip((f'{name}_' for name in names), subnets, strict=False))

    def _losses(self, model, outputs, teacher, data_samples) -> dict[str, Tensor]:
        """The parts of the loss, weighted."""
        (logits, features), losses = outputs, {}
        if self.logits:
            own, other = logits.float(), teacher[0].float()
            loss = logit_loss(own, other, self.temperature, model.is_multi_label)
            losses['logits'] = self.logits * loss
        if self.features:
            parts = model.backbone.feature_parts
            other = slice_parts(teacher[1].float(), features.shape[-1], parts)
            losses['features'] = self.features * self.distance(features.float(), other)
        if self.labels:
            losses['labels'] = self.labels * label_loss(model, logits, data_samples)
        return losses

    def _find_teacher(self, runner, model: SupernetClassifier) -> None:
        """Load the teacher, unless the supernet itself is it."""
        file = self.checkpoint
        if file is None and not model.is_frozen:
            chosen = [first_start(runner.cfg)]
            broadcast_object_list(chosen)  # only the first process knows of a resume by now
            file = chosen[0]
            if file is None:
                raise UserError(
                    'is missing: all weights are trained, so that the teacher is a copy of a file, '
                    'and there is no load_from of the first start; give the file of the original',
                    'train_cfg.strategy.checkpoint',
                )
        if file is not None:
            self._to_note = file
            device = model.backbone.pos_embed.device
            self._teacher = load_teacher(runner.cfg, file, bool(self.logits)).to(device)

    def _note_teacher(self, runner) -> None:
        """Record the teacher's file at the first step; refuse another one after a resume."""
        file, self._to_note = self._to_note, None
        if file is None or not Path(file).is_file():  # noted already, or an address
            return
        hub, digest = runner.message_hub, sha256(file)
        if hub.runtime_info.get(_TEACHER, digest) != digest:
            raise UserError(
                f'{file} is not the file that this training began with; put that back, or start '
                'a new training',
                'train_cfg.strategy.checkpoint',
            )
        hub.update_info(_TEACHER, digest)


def one_subnet(value: Mapping | str) -> Subnet:
    """The subnet that ``subnets`` describes.

    Raises:
        UserError: If it describes none.
    """
    with inside('subnets'):
        if isinstance(value, Mapping) or str(value).endswith('.json'):
            return Subnet.coerce(value)
    raise UserError(
        f"must be 'uniform', 'sandwich', or a subnet as a dict or .json file, got {value!r}",
        'subnets',
    )


def load_teacher(cfg, file: str, needs_logits: bool) -> SupernetClassifier:
    """Build the network of a config with the weights of a file, which are not trained.

    Raises:
        UserError: If the file does not exist or fit, or ``needs_logits`` of other classes.
    """
    where = f'teacher (train_cfg.strategy.checkpoint or load_from) {file}'
    with torch.random.fork_rng(devices=[]), inside(where):
        teacher = load_supernet(cfg)
        teacher.requires_grad_(not needs_logits)  # a head that is frozen is not replaced
        state = read_state_dict(file)
        adapt_to_start(state, teacher.state_dict(keep_vars=True))
        teacher.load_state_dict(state)
    return teacher.requires_grad_(False)


def logit_loss(logits: Tensor, teacher: Tensor, temperature: float, multi_label: bool) -> Tensor:
    """T^2 KL(teacher || student) of probabilities at temperature T, a mean over images.

    With ``multi_label``, the binary cross-entropy instead, a sum over classes. Logits are
    (B, classes).
    """
    logits, teacher = logits / temperature, teacher / temperature
    if multi_label:
        target = teacher.sigmoid()
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction='sum') / len(logits)
    else:
        own, target = logits.log_softmax(-1), teacher.log_softmax(-1)
        loss = F.kl_div(own, target, reduction='batchmean', log_target=True)
    return temperature**2 * loss


def _cosine_distance(features: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(features, teacher, dim=-1).mean()


_DISTANCES = dict(cosine=_cosine_distance, mse=F.mse_loss)
