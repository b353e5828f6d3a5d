"""MMPretrain's layer decay of rates, with a rate of its own for a new head."""

from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor

from ...checks import positive
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class HeadLayerDecay(LearningRateDecayOptimWrapperConstructor):
    """Rates that fall from block to block, and a higher one for a head that starts at random.

    ``paramwise_cfg`` is that of MMPretrain's ``LearningRateDecayOptimWrapperConstructor``, with one
    more field: ``head_lr_mult`` multiplies the rate of ``model.head``, by default by 1.

    Raises:
        UserError: If ``head_lr_mult`` is not a positive number.
    """

    def add_params(self, params: list[dict], module, prefix: str = '', **kwargs) -> None:
        """Add the parameters of a module, as in MMPretrain."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # a part: the whole model comes last
            return
        factor = positive(self.paramwise_cfg.get('head_lr_mult', 1.0), 'head_lr_mult', float)
        for group in params:
            if group['param_name'].startswith('head.'):
                group['lr'] *= factor
