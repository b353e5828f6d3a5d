"""What a candidate loses on held-out images."""

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.evaluator import Evaluator

from ...datasets.held_out_images import HeldOutImages
from ...evaluation import CrossEntropy
from ...search import Outcome, Task
from ..model_access import supernet_of


class CandidateEvaluator:
    """Runs the supernet of a runner as one of its subnets; alone, whatever other ranks do.

    Args:
        runner: Holds the model and the hooks, of which one merges the experts.
        images: The held-out images.
        evaluator: The metrics.
    """

    def __init__(self, runner, images: HeldOutImages, evaluator: Evaluator):
        self.runner, self.images, self.evaluator = runner, images, evaluator
        losses = [m for m in evaluator.metrics if isinstance(m, CrossEntropy)]
        self.losses = Evaluator(losses)  # all that a race asks for

    @torch.no_grad()
    def __call__(self, task: Task) -> Outcome:
        """Metrics on all images, or losses by image on some; neither if memory does not do."""
        evaluator = self.evaluator if task.images is None else self.losses
        try:
            self._predict(task, evaluator)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self.runner.logger.warning(f'Out of memory, hence left without a score: {task.subnet}')
            for metric in evaluator.metrics:
                metric.results.clear()
            return Outcome()
        if task.images is None:
            return Outcome({name: float(value) for name, value in local_metrics(evaluator).items()})
        results = evaluator.metrics[0].results
        losses = np.array(results, np.float32)
        results.clear()
        return Outcome(losses=losses)

    def _predict(self, task: Task, evaluator: Evaluator) -> None:
        """Hand predictions to the evaluator, batch by batch as in ``ValLoop``."""
        runner = self.runner
        runner.model.eval()
        supernet_of(runner).set_subnet(task.subnet)
        low = task.precision == 'bfloat16'
        for place, batch in enumerate(self.images.batches(task.images)):
            runner.call_hook('before_val_iter', batch_idx=place, data_batch=batch)
            with torch.autocast(get_device(), dtype=torch.bfloat16, enabled=low):
                outputs = runner.model.val_step(batch)
            evaluator.process(data_samples=outputs, data_batch=batch)
            runner.call_hook('after_val_iter', batch_idx=place, data_batch=batch, outputs=outputs)


def local_metrics(evaluator: Evaluator) -> dict:
    """What the metrics find in what this rank alone has seen; ``evaluate`` would ask all ranks."""
    found = {}
    for metric in evaluator.metrics:
        prefix = f'{metric.prefix}/' if metric.prefix else ''
        metrics = metric.compute_metrics(metric.results)
        found |= {f'{prefix}{name}': value for name, value in metrics.items()}
        metric.results.clear()
    return found


def _is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, of Python, or of torch's allocator on CPUs, whose error has no class."""
    said = ("can't allocate memory", 'not enough memory', 'ALLOC_FAILED')
    is_said = any(text in str(error) for text in said)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_said
