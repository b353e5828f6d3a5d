"""A process that evaluates candidates for a search that runs elsewhere."""

import platform
import tempfile
import warnings

import torch
from mmengine.utils import import_modules_from_strings
from torch import Tensor

from ...errors import UserError
from ...search import Outcome, Task
from ...structures import Subnet
from ..model_access import supernet_of
from ..runner.supernet_runner import SupernetRunner
from .identity import device_name


class SearchWorker:
    """The runner of a search's config, with the weights and images of the search.

    Its methods are called from another process, so arguments and results must be picklable.
    """

    def start(self, config: dict, weights: dict, fingerprint: str, samples: list | None) -> dict:
        """Build the model and the metrics.

        Args:
            config: The complete config of the search.
            weights: The supernet's state dict, as :func:`to_arrays` returns it.
            fingerprint: Of the held-out images of the search.
            samples: The decoded images, as :func:`to_arrays` returns each; None to read them here.

        Returns:
            ``host`` and ``device`` of this worker, by name.

        Raises:
            UserError: If this machine has other held-out images.
        """
        # Logs of MMEngine, which nobody reads here.
        self.folder = tempfile.TemporaryDirectory(prefix='tas_lora_worker_')
        if config.get('custom_imports'):
            import_modules_from_strings(**config['custom_imports'])
        self.runner = SupernetRunner.from_cfg(config | dict(work_dir=self.folder.name))
        self.runner.prepare('val')
        self.loop = self.runner.val_loop
        found = self.loop.images.fingerprint()
        if found != fingerprint:
            raise UserError(f'has other held-out images: {found}, the search has {fingerprint}')
        if samples is not None:
            self.loop.images.adopt([to_tensors(sample) for sample in samples])
        for point in ('before_run', 'before_val', 'before_val_epoch'):
            self.runner.call_hook(point)
        # The weights come last: the search's own hooks, such as EMA's, have swapped them already.
        supernet_of(self.runner).load_state_dict(to_tensors(weights))
        return dict(host=platform.node(), device=device_name())

    def evaluate(self, task: Task) -> Outcome:
        """Evaluate a candidate."""
        return self.loop.evaluate(task)

    def measure(self, subnet: Subnet) -> dict[str, float]:
        """Measured costs of a subnet on the device of this worker."""
        return self.loop.settings.measured.measure(subnet)

    def peak_memory(self) -> tuple[int, int]:
        """Bytes that one batch takes on the GPU of this worker in the largest subnet, and has."""
        largest = self.loop.settings.space.largest()
        self.evaluate(
            Task(0, largest, images=range(min(self.loop.images.batch_size, len(self.loop.images))))
        )
        return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def to_arrays(values: dict) -> dict:
    """Tensors as NumPy arrays, which processes on one machine share without copying them."""
    return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}


def to_tensors(values: dict) -> dict:
    """Inverse of :func:`to_arrays`; the tensors must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
        return {
            k: torch.from_numpy(v) if type(v).__module__ == 'numpy' else v
            for k, v in values.items()
        }
