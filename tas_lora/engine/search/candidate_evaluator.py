"""Evaluation of a candidate on held-out images."""

import time
from dataclasses import replace

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.evaluator import Evaluator

from ...datasets.held_out_images import HeldOutImages
from ...errors import UserError
from ...evaluation import CrossEntropy
from ...search import Outcome, Task
from ...structures import Subnet
from ..model_access import supernet_of


class CandidateEvaluator:
    """Evaluates one subnet of a runner's supernet, in this process.

    Args:
        runner: Holds the model and the hooks, one of which merges the experts.
        images: The held-out images.
        evaluator: The metrics.
    """

    def __init__(self, runner, images: HeldOutImages, evaluator: Evaluator):
        self.runner, self.images, self.evaluator = runner, images, evaluator
        losses = [m for m in evaluator.metrics if isinstance(m, CrossEntropy)]
        self.losses = Evaluator(losses)  # a race needs no other metric

    @torch.no_grad()
    def __call__(self, task: Task) -> Outcome:
        """Metrics on all images, or per-image losses on some; neither if memory runs out."""
        start = time.monotonic()
        outcome = self._evaluate(task, self.evaluator if task.images is None else self.losses)
        return replace(outcome, seconds=time.monotonic() - start)

    def _evaluate(self, task: Task, evaluator: Evaluator) -> Outcome:
        try:
            self._predict(task, evaluator)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            for metric in evaluator.metrics:
                metric.results.clear()
            return Outcome()
        if task.images is None:
            if not (found := numbers_of(evaluator.evaluate(len(self.images)))):
                raise UserError('val_evaluator gives no number to rank subnets by, only lists')
            return Outcome(found)
        results = evaluator.metrics[0].results
        losses = np.array(results, np.float32)
        results.clear()
        return Outcome(losses=losses)

    def peak_memory(self, subnet: Subnet) -> int:
        """Bytes that PyTorch reserves on the GPU to evaluate a batch, weights included."""
        batch = np.arange(min(self.images.batch_size, len(self.images)))
        self._predict(Task(0, subnet, images=batch), Evaluator([]))
        return torch.cuda.max_memory_reserved()

    def _predict(self, task: Task, evaluator: Evaluator) -> None:
        """Pass predictions to the evaluator, batch by batch as in ``ValLoop``."""
        runner = self.runner
        runner.model.eval()
        supernet = supernet_of(runner)
        if supernet.subnet != task.subnet:  # else its experts may be merged already
            supernet.set_subnet(task.subnet)
        low = task.precision == 'bfloat16'
        for place, batch in enumerate(self.images.batches(task.images)):
            runner.call_hook('before_val_iter', batch_idx=place, data_batch=batch)
            with torch.autocast(get_device(), dtype=torch.bfloat16, enabled=low):
                outputs = runner.model.val_step(batch)
            evaluator.process(data_samples=outputs, data_batch=batch)
            runner.call_hook('after_val_iter', batch_idx=place, data_batch=batch, outputs=outputs)


def numbers_of(metrics: dict) -> dict[str, float]:
    """Metrics that are single numbers; not matrices, nor lists by class."""
    sized = {name: np.asarray(value) for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in sized.items()
        if value.ndim == 0 and np.issubdtype(value.dtype, np.number)
    }


def _is_out_of_memory(error: Exception) -> bool:
    """On a GPU, in Python, or in torch's CPU allocator, whose errors have no class of their own."""
    texts = ("can't allocate memory", 'not enough memory', 'ALLOC_FAILED')
    is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known or any(text in str(error) for text in texts)
