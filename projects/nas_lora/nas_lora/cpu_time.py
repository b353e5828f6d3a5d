"""CPU time of jobs, for machines on which other programs run."""

import time
from collections.abc import Callable, Mapping


def cpu_seconds(jobs: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each job in ``rounds`` rounds after a warm-up round; jobs take turns.

    Wall-clock time would include waiting for other programs. It is for CPU work only, and assumes
    that torch uses one thread.
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
