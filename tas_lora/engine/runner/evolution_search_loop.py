"""Evolutionary search as a validation loop."""

import json
import time
from functools import partial
from math import isfinite, nan
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, broadcast_object_list, is_main_process
from mmengine.runner import ValLoop

from ...datasets.replay import readable
from ...errors import UserError
from ...files import write_atomic
from ...registry import LOOPS
from ...search import Evolution, History, Limits, count_flops, count_params, open_history
from ...structures import SearchSpace, Subnet
from ...structures.subnet import boolean, one_of, positive
from ..of_runner import supernet_of
from .kept_batches import KeptBatches
from .search_identity import begin_search, identity_of, refuse_test_set
from .subnet_val_loop import run_subnet

COUNTERS = dict(params=count_params, flops=count_flops)


@LOOPS.register_module()
class EvolutionarySearchLoop(ValLoop):
    """Finds the subnet with the best score within limits (TAS-LoRA, Algorithm 2).

    It is the ``val_cfg`` of a search config and started by ``runner.val()``. The validation data
    must be images that no training stage has seen, and not the test set. Two files are written
    to the work directory: ``search_history.jsonl``, a line per subnet as it is scored, and
    ``best_subnet.json``. A subnet whose evaluation runs out of memory gets no score, cannot win,
    and does not end the search. ``search.json`` beside them says what search it is.

    Args:
        runner: The runner.
        dataloader: As in ``ValLoop``: the held-out images.
        evaluator: As there; must yield ``score``.
        space: The search space, or its dict.
        constraints: Limits, ``{'params': (low, high), 'flops': (low, high)}``, inclusive; None
            leaves a side open.
        score: Name of the metric subnets are ranked by.
        rule: 'less' if a lower score is better, 'greater' for metrics like accuracy.
        log_interval: Subnets between two log lines.
        precision: Of the forward, 'float32' or 'bfloat16'.
        finalists: After a search in bfloat16, as many of its best are scored again in float32,
            and the best of those is the result.
        memory_share: Share of the free memory that decoded images may take; if they need more,
            they are decoded anew for every subnet.
        evolution: Arguments of :class:`~tas_lora.search.Evolution`: ``population``,
            ``generations``, ``parents``, ``mutations``, ``crossovers``, ``gene_prob``,
            ``shape_prob``, ``seed``.
        resume: Go on with the search in the work directory, of which only the subnets are scored
            that have no line yet. It must be the same search.
        search_on_test_set: Do not refuse a dataset that is marked as test set, or is that of the
            config's test.
        **kwargs: As in ``ValLoop``.

    Raises:
        UserError: If the space does not fit the supernet, or no subnet was found in the limits.
    """

    def __init__(
        self,
        runner,
        dataloader,
        evaluator,
        space: dict,
        constraints: dict | None = None,
        score: str = 'cross_entropy',
        rule: str = 'less',
        log_interval: int = 10,
        precision: str = 'float32',
        finalists: int = 10,
        memory_share: float = 0.5,
        evolution: dict | None = None,
        resume: bool = False,
        search_on_test_set: bool = False,
        **kwargs,
    ):
        if kwargs.get('fp16'):
            raise UserError("val_cfg.fp16: a search has val_cfg.precision='bfloat16' in its place")
        if not boolean(search_on_test_set, 'val_cfg.search_on_test_set'):
            refuse_test_set(runner.cfg)
        super().__init__(runner, readable(dataloader), evaluator, **kwargs)
        self.resume = boolean(resume, 'val_cfg.resume')
        self.dataloader = KeptBatches(self.dataloader, memory_share)
        self.space = SearchSpace.coerce(space)
        self.model = supernet_of(runner)
        self.space.largest().check_fits(self.model.backbone.arch, 'the largest subnet of the space')
        one_of(rule, 'val_cfg.rule', ('less', 'greater'))
        one_of(precision, 'val_cfg.precision', ('float32', 'bfloat16'))
        self.score, self.rule, self.precision = score, rule, precision
        self.finalists = positive(finalists, 'val_cfg.finalists', int)
        self.log_interval = positive(log_interval, 'val_cfg.log_interval', int)
        spec = self.model.image_spec
        counters = {name: partial(count, **spec) for name, count in COUNTERS.items()}
        self.limits = Limits(constraints, counters)
        if not isinstance(evolution, (dict, type(None))):
            raise UserError(f'val_cfg.evolution must be a dict, got {evolution!r}')
        self.evolution = Evolution(self.space, self.limits.allow, **(evolution or {}))

    def run(self) -> dict:
        """Search; returns the score and the costs of the best subnet."""
        self._check_limits()
        self.history = self._open_history()
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.started, self.done = time.monotonic(), 0
        while subnets := self.evolution.ask():
            self.evolution.tell({s: self._evaluate(s) for s in subnets})
            self._log_generation()
        if self.evolution.generation < self.evolution.generations:
            self.runner.logger.info('No further subnet within the limits was found.')
        metrics = self._finish()
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """As in ``ValLoop``, at the precision asked for."""
        self.runner.call_hook('before_val_iter', batch_idx=idx, data_batch=data_batch)
        low = self.precision == 'bfloat16'
        with torch.autocast(get_device(), dtype=torch.bfloat16, enabled=low):
            outputs = self.runner.model.val_step(data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            'after_val_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )

    def _check_limits(self) -> None:
        """Refuse limits that leave nothing, and warn of those that leave little."""
        found, (share, text) = self.evolution.ask(), self.limits.survey(self.space)
        if not found:
            raise UserError(f'no subnet was found: {text}; change val_cfg.constraints')
        if share < Limits.FEW:
            self.runner.logger.warning(f'The limits are narrow: {text}')

    def _open_history(self) -> History:
        """The history to write, on the first rank, with what it holds already, on all."""
        folder, lines = Path(self.runner.work_dir), [None]
        path = folder / 'search_history.jsonl'
        if is_main_process():
            identity = identity_of(self.runner.cfg, self.runner._load_from)
            begin_search(folder, identity, self.resume)
            lines = [open_history(path, self.resume)]
        broadcast_object_list(lines)
        if lines[0]:
            self.runner.logger.info(f'Going on behind {len(lines[0])} subnets that are scored.')
        return History(path, lines[0])

    def _evaluate(self, subnet: Subnet) -> float:
        line = self.history.recall(subnet, self.precision)
        if line is None:
            metrics = self._metrics(subnet)
            line = dict(generation=self.evolution.generation, precision=self.precision)
            line |= self._record(subnet, metrics)
            self.history.append(line, write=is_main_process())
        self.done += 1
        score = line.get(self.score, nan)
        score = score if isfinite(score) else nan  # an infinite one could win
        if self.done % self.log_interval == 0:
            self._log_progress(subnet, score)
        return self._signed(score)

    def _metrics(self, subnet: Subnet) -> dict:
        """Metrics of a subnet; none if it does not fit in the memory of all ranks."""
        try:
            run_subnet(self, subnet)
            fits = torch.ones(())
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            fits = torch.zeros(())
        all_reduce(fits, 'min')
        if not fits:
            for metric in self.evaluator.metrics:
                metric.results.clear()
            self.runner.logger.warning(f'Out of memory, hence left without a score: {subnet}')
            return {}
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        if self.score not in metrics:
            raise UserError(
                f'val_cfg.score is {self.score!r}, but val_evaluator gives {sorted(metrics)}'
            )
        return metrics

    def _signed(self, score: float) -> float:
        """Evolution minimises: a score to maximise changes its sign, on the way in and out."""
        return score if self.rule == 'less' else -score

    def _score_of(self, subnet: Subnet) -> float:
        return self._signed(self.evolution.scores[subnet])

    def _record(self, subnet: Subnet, metrics: dict) -> dict:
        scores = {name: float(value) for name, value in metrics.items()}
        return dict(subnet=subnet.to_dict(), **self.limits.costs(subnet), **scores)

    def _confirm(self) -> None:
        """Score the best anew in float32; the others are out of the race."""
        best, self.precision = self.evolution.best(self.finalists), 'float32'
        self.runner.logger.info(f'The best {len(best)} are scored again in float32.')
        self.evolution.scores = {subnet: self._evaluate(subnet) for subnet in best}

    def _finish(self) -> dict:
        if self.precision != 'float32':
            self._confirm()
        best = self.evolution.best(1)[0]
        if not isfinite(self._score_of(best)):
            raise UserError(
                f'no subnet has a finite {self.score}, or none fits in memory; see the log'
            )
        record = self._record(best, {self.score: self._score_of(best)})
        target = Path(self.runner.work_dir) / 'best_subnet.json'
        if is_main_process():
            write_atomic(target, json.dumps(record, indent=2) + '\n')
        self.runner.logger.info(f'Best after {self.done} evaluations, written to {target}: {best}')
        return {name: value for name, value in record.items() if name != 'subnet'}

    def _log_progress(self, subnet: Subnet, score: float) -> None:
        total = self.evolution.population * self.evolution.generations
        total += 0 if self.precision == 'float32' else self.finalists
        spent = time.monotonic() - self.started
        left = spent / self.done * (total - self.done)
        self.runner.logger.info(
            f'Search [{self.done}/{total}]  {self.score}: {score:.4f}  '
            f'params: {self.limits.counters["params"](subnet):,}  '
            f'{spent / self.done:.2f} s/subnet  eta: {left:.0f} s'
        )

    def _log_generation(self) -> None:
        best = self.evolution.best(1)[0]
        self.runner.logger.info(
            f'Generation {self.evolution.generation}/{self.evolution.generations}  '
            f'best {self.score}: {self._score_of(best):.4f}  '
            f'params: {self.limits.counters["params"](best):,}'
        )


def _is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, of Python, or of torch's allocator on CPUs, whose error has no class."""
    said = ("can't allocate memory", 'not enough memory', 'ALLOC_FAILED')
    is_said = any(text in str(error) for text in said)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_said
