"""Stage-wise training: weights only, then weights and architecture parameters in turn.

NAS-LoRA trains weights for 10 epochs with Adam at 1e-4. Until epoch 40 it then alternates with
architecture parameters, with Adam at 1e-3. Their first gradients are zero, as Wd starts at zero.
How it alternates, and on which data, is not published: both are options of the hook.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from tas_lora.checks import natural, one_of
from tas_lora.engine.optim import JointOptimWrapper, SupernetOptimWrapper
from tas_lora.errors import UserError, blame

from ..registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from .cell import SearchCell

WEIGHTS, ALPHA = 'weights', 'alpha'
_RATES = {WEIGHTS: 1e-4, ALPHA: 1e-3}


def alpha_turn(
    epoch: int, index: int, epoch_length: int, weight_epochs: int, alternate: str
) -> int | None:
    """Whether a batch trains weights or architecture parameters.

    Weights get the first epochs, then the first of every two batches or epochs. The turn depends
    only on the position in the training, so a resumed run continues in step.

    Args:
        epoch: Epoch, from 0.
        index: Index of the batch in its epoch, from 0.
        epoch_length: Batches per epoch.
        weight_epochs: T_B.
        alternate: 'batch' or 'epoch'.

    Returns:
        The batch's number among those of the architecture parameters, from 0; None if the batch
        trains the weights.
    """
    passed = epoch - weight_epochs
    if passed < 0:
        return None
    if alternate == 'epoch':
        return passed // 2 * epoch_length + index if passed % 2 else None
    batch = passed * epoch_length + index
    return batch // 2 if batch % 2 else None


def architecture_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained architecture parameters of ``model``, each once."""
    cells = (m for m in model.modules() if isinstance(m, SearchCell) and m.is_searched)
    return list({id(cell.alpha): cell.alpha for cell in cells}.values())


@OPTIM_WRAPPERS.register_module()
class StageWiseOptimWrapper(JointOptimWrapper):
    """Two optimizers; only the one in ``turn`` steps.

    Args:
        weights: Wrapper of the weights' optimizer.
        alpha: Wrapper of the architecture parameters' optimizer.

    Attributes:
        turn: 'weights' or 'alpha'; :class:`StageWiseHook` sets it before each batch.
    """

    def __init__(self, weights: SupernetOptimWrapper, alpha: SupernetOptimWrapper):
        super().__init__(weights=weights, alpha=alpha)
        self.turn = WEIGHTS

    def update_params(self, loss: Tensor, step_kwargs=None, zero_kwargs=None) -> None:
        """Run backward, step one optimizer, clear both."""
        self.backward(self.scale_loss(loss))
        for name, wrapper in self.items():
            if name != self.turn:
                wrapper.zero_grad(**(zero_kwargs or {}))
        self.first.take_step(loss, [self[self.turn]], step_kwargs, zero_kwargs)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class StageWiseOptimWrapperConstructor:
    """Builds a :class:`StageWiseOptimWrapper` for a model with :class:`NASLoRALinear` layers.

    Args:
        optim_wrapper_cfg: ``weights`` and ``alpha``, each a config of a
            ``tas_lora.SupernetOptimWrapper``; by default Adam at 1e-4 and 1e-3, as in the paper.
            Other fields, such as ``amp``, are defaults for both.
        paramwise_cfg: Not used; MMEngine passes it to all constructors.
    """

    def __init__(self, optim_wrapper_cfg: Mapping, paramwise_cfg: dict | None = None):
        parts = {name: optim_wrapper_cfg.get(name) or {} for name in _RATES}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise UserError(f'optim_wrapper.{name} must be a dict, got {part!r}')
        both = {k: v for k, v in optim_wrapper_cfg.items() if k not in (*_RATES, 'type')}
        self.configs = {name: both | dict(part) for name, part in parts.items()}
        for name, config in self.configs.items():
            if config.get('accumulative_counts', 1) != 1:
                raise UserError(
                    f'optim_wrapper.{name}.accumulative_counts: a turn may be a single batch; '
                    'set it to 1'
                )

    def __call__(self, model: nn.Module) -> StageWiseOptimWrapper:
        """Wrap the architecture parameters of ``model`` and its other trained parameters."""
        alpha = architecture_parameters(model)
        if not alpha:
            raise UserError(
                'optim_wrapper: the model has no architecture parameters; adapt it by '
                "nas_lora.NASLoRALinear with choice='searched', or use an OptimWrapper"
            )
        known = {id(p) for p in alpha}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        return StageWiseOptimWrapper(
            weights=self._build(WEIGHTS, weights), alpha=self._build(ALPHA, alpha)
        )

    def _build(self, name: str, parameters: list[nn.Parameter]) -> SupernetOptimWrapper:
        config = dict(self.configs[name])
        if config.pop('type', 'tas_lora.SupernetOptimWrapper') != 'tas_lora.SupernetOptimWrapper':
            raise UserError(f'optim_wrapper.{name}.type must be tas_lora.SupernetOptimWrapper')
        with blame(f'optim_wrapper.{name} cannot be built'):
            optimizer = dict(type='Adam', lr=_RATES[name]) | dict(config.pop('optimizer', {}))
            optimizer = OPTIMIZERS.build(optimizer | dict(params=parameters))
            return SupernetOptimWrapper(optimizer, **config)


@HOOKS.register_module()
class StageWiseHook(Hook):
    """Sets the turn of each batch: weights for ``weight_epochs``, then both in turn.

    Outside their turn, architecture parameters need no gradient; DDP then requires
    ``find_unused_parameters=True``. Checkpoints hold no state of it: a turn follows from the epoch
    and the batch.

    Args:
        weight_epochs: T_B, epochs of weights only; 10 of 40 in the paper.
        alternate: Alternate by 'batch' or by 'epoch'.
        held_out_dataloader: Config of the images that train the architecture parameters, in place
            of the training batch of their turn; by default that batch. Its batches follow the order
            of ``sampler.set_epoch(pass)``.

    Raises:
        UserError: If an argument is out of range; at the start of training, if the loop has no
            epochs or the optimizer wrapper is not a :class:`StageWiseOptimWrapper`.
    """

    def __init__(
        self,
        weight_epochs: int = 10,
        alternate: str = 'batch',
        held_out_dataloader: dict | None = None,
    ):
        self.weight_epochs = natural(weight_epochs, 'StageWiseHook.weight_epochs')
        one_of(alternate, 'StageWiseHook.alternate', ('batch', 'epoch'))
        self.alternate = alternate
        self.held_out_dataloader = held_out_dataloader
        self._held_out: HeldOutBatches | None = None

    def before_train(self, runner):  # noqa: D102  the hook points are MMEngine's
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise UserError('train_cfg: StageWiseHook counts epochs; set by_epoch=True')
        if not isinstance(runner.optim_wrapper, StageWiseOptimWrapper):
            raise UserError(
                'optim_wrapper: StageWiseHook needs '
                "constructor='nas_lora.StageWiseOptimWrapperConstructor'"
            )
        if self.held_out_dataloader is not None:
            with blame('StageWiseHook.held_out_dataloader cannot be built'):
                loader = Runner.build_dataloader(self.held_out_dataloader, seed=runner.seed)
            self._held_out = HeldOutBatches(loader)

    def before_train_iter(self, runner, batch_idx, data_batch=None):  # noqa: D102
        length = len(runner.train_dataloader)
        place = runner.epoch, batch_idx, length, self.weight_epochs, self.alternate
        turn = alpha_turn(*place)
        runner.optim_wrapper.turn = WEIGHTS if turn is None else ALPHA
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for alpha in architecture_parameters(model):
            alpha.requires_grad_(turn is not None)
        if turn is not None and self._held_out is not None:
            _replace(data_batch, self._held_out[turn])


class HeldOutBatches:
    """Batches of a dataloader by number, over repeated passes.

    Args:
        dataloader: A dataloader whose order depends on ``sampler.set_epoch``, such as MMEngine's.

    Raises:
        UserError: If its sampler has no such method.
    """

    def __init__(self, dataloader):
        if not hasattr(dataloader.sampler, 'set_epoch'):
            raise UserError(
                'StageWiseHook.held_out_dataloader.sampler must have set_epoch, as '
                f"dict(type='DefaultSampler') has, got {type(dataloader.sampler).__name__}"
            )
        self.dataloader = dataloader
        self._next = -1
        self._batches: Iterator = iter(())

    def __getitem__(self, number: int) -> dict:
        """Batch ``number``, from 0. Cheap in sequence; otherwise its pass is read up to it."""
        length = len(self.dataloader)
        if number != self._next or number % length == 0:
            self.dataloader.sampler.set_epoch(number // length)
            self._batches = islice(self.dataloader, number % length, None)
        self._next = number + 1
        return next(self._batches)


def _replace(batch: dict, other: dict) -> None:
    """Turn ``batch`` into ``other`` in place: a hook cannot pass data to the loop otherwise."""
    if not isinstance(batch, dict) or not isinstance(other, dict):
        raise UserError(
            'StageWiseHook.held_out_dataloader: batches must be dicts, as pseudo_collate makes '
            f'them, got {type(batch).__name__} and {type(other).__name__}'
        )
    batch.clear()
    batch.update(other)
