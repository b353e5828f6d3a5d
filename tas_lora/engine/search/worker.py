"""A process that evaluates candidates for a search that runs elsewhere."""

import os
import platform
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import import_modules_from_strings
from torch import Tensor

from ...errors import UserError
from ...search import Outcome, Task
from ...structures import Subnet
from ..model_access import supernet_of
from ..runner.supernet_runner import SupernetRunner
from ..slow_options import check_search_speed
from .identity import device_name


class SearchWorker:
    """The runner of a search's config, with the weights and images of the search.

    Its methods are called from another process, so arguments and results must be picklable.
    """

    def start(
        self, config: dict, weights: dict, fingerprint: str, samples: list | None, gpus: float
    ) -> dict:
        """Build the model and the metrics.

        Args:
            config: The complete config of the search; ``cwd`` is its folder for relative paths.
            weights: The supernet's state dict, as :func:`to_arrays` returns it.
            fingerprint: Of the held-out images of the search.
            samples: The decoded images, as :func:`to_arrays` returns each; None to read them here.
            gpus: Share of a GPU. Below 1, memory is limited to it, so that whether a candidate fits
                does not depend on the neighbours.

        Returns:
            ``host`` and ``device`` of this worker, by name.

        Raises:
            UserError: If this machine has other held-out images.
        """
        cwd = config.pop('cwd')
        if Path(cwd).is_dir():  # a worker starts in a folder of Ray's
            os.chdir(cwd)
        if 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        # Logs of MMEngine, which nobody reads here.
        self.folder = tempfile.TemporaryDirectory(prefix='tas_lora_worker_')
        if config.get('custom_imports'):
            import_modules_from_strings(**config['custom_imports'])
        self.runner = SupernetRunner.from_cfg(config | dict(work_dir=self.folder.name))
        self.runner.prepare('val')
        check_search_speed(self.runner)
        self.loop = self.runner.val_loop
        found = self.loop.images.fingerprint()
        if found != fingerprint:
            raise UserError(
                f'{platform.node()} has other held-out images: {found}, not {fingerprint} as the '
                'search'
            )
        if samples is not None:
            self.loop.images.adopt([to_tensors(sample) for sample in samples])
        for point in ('before_run', 'before_val', 'before_val_epoch'):
            self.runner.call_hook(point)
        # The weights come last: the search's own hooks, such as EMA's, have swapped them already.
        supernet_of(self.runner).load_state_dict(to_tensors(weights))
        import ray  # there is no worker without it

        node = ray.get_runtime_context().get_node_id()
        return dict(host=platform.node(), node=node, device=device_name())

    def evaluate(self, task: Task) -> Outcome:
        """Evaluate a candidate."""
        return self.loop.evaluate(task)

    def measure(self, subnet: Subnet) -> dict[str, float]:
        """Measured costs of a subnet on the device of this worker."""
        return self.loop.settings.measured.measure(subnet)

    def peak_memory(self) -> tuple[int, int]:
        """Bytes that one batch takes on the GPU of this worker in the largest subnet, and has."""
        peak = self.loop.evaluate.peak_memory(self.loop.settings.space.largest())
        return peak, torch.cuda.get_device_properties(0).total_memory

    def stop(self) -> None:
        """Remove what this worker has written; Ray runs no clean-up in a worker that it ends."""
        self.folder.cleanup()


def to_arrays(values: dict) -> dict:
    """Tensors as NumPy arrays, which processes on one machine share without copying them."""
    return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}


def to_tensors(values: dict) -> dict:
    """Inverse of :func:`to_arrays`; the tensors must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
        return {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()
        }
