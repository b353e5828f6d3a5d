"""The toolkit's runner for models of any kind."""

from mmengine.model import is_model_wrapper

from tas_lora import UserError
from tas_lora.engine import SupernetRunner
from tas_lora.engine.runner.resume_check import make_resumable
from tas_lora.models.safe_load import read_checkpoint, unwrapped

from .registry import RUNNERS


@RUNNERS.register_module()
class SafeRunner(SupernetRunner):
    """Reads checkpoints without running code in them, for a model that is not a supernet.

    ``runner_type='nas_lora.SafeRunner'`` in a config makes MMPretrain's tools use it. Under torch
    2.6 and newer, MMEngine's own runner refuses its own checkpoints.
    """

    def load_checkpoint(self, filename: str, map_location='cpu', **kwargs) -> dict:
        """Load a checkpoint's weights into the model; all of them must fit.

        Raises:
            UserError: If it cannot be read, or its names and shapes differ from the model's.
        """
        checkpoint = read_checkpoint(filename)
        if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
            raise UserError(f'{filename} is not a training checkpoint: it has no state_dict')
        if self._resume:
            make_resumable(checkpoint, self, filename)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        try:
            model.load_state_dict(unwrapped(checkpoint['state_dict']))
        except RuntimeError as error:
            reason = ' '.join(str(error).split())[:300]
            raise UserError(f'{filename} does not fit the model: {reason}') from error
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint
