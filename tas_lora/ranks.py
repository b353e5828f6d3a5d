"""Which process of a distributed run this is, before the processes have met."""

import os

# As MMEngine reads them. A batch system sets its own for any job, also where each process is a run.
_VARIABLES = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def note_launcher(launcher: str | None) -> None:
    """Set RANK from what the launcher has set, as MMEngine will once it starts."""
    rank = os.environ.get(_VARIABLES.get(launcher, ''))
    if rank is not None:
        os.environ['RANK'] = rank


def is_first_rank(launcher: str | None = 'pytorch') -> bool:
    """Whether this is the first process, or the only one.

    Args:
        launcher: MMEngine's name of it; 'none' for a process that is a run of its own. The default
            reads RANK, which torchrun or :func:`note_launcher` has set.
    """
    return os.environ.get(_VARIABLES.get(launcher, ''), '0') == '0'
