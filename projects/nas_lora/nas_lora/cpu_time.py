"""Seconds that a core was busy, for machines on which other programs run."""

import time
from collections.abc import Callable, Mapping


def cpu_seconds(jobs: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Busy seconds of each job, in ``rounds`` rounds after one to warm up; all take turns.

    Not those on the clock: beside other programs a thread waits for its turn. For CPUs alone, and
    with one thread of torch's they are those of the job.
    """
    seconds = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            started = time.process_time()
            jobs[name]()
            seconds[name].append(time.process_time() - started)
    return {name: values[1:] for name, values in seconds.items()}
