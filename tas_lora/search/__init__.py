from ..renamed import renamed
from .complexity import count_flops, count_params
from .evolution import Evolution
from .front import best_within, knee_points, pareto_front
from .limits import Limits
from .nsga2 import NSGA2
from .race import Race, RaceRules
from .records import History, Journal, Journalled, Measured, read_history, read_measured
from .scorer import CandidateScorer
from .surrogate import Surrogate
from .task import Executor, InProcess, Outcome, Task

__all__ = [
    'NSGA2',
    'Evolution',
    'Executor',
    'History',
    'InProcess',
    'Journal',
    'Journalled',
    'Limits',
    'Measured',
    'Outcome',
    'Race',
    'RaceRules',
    'CandidateScorer',
    'Surrogate',
    'Task',
    'best_within',
    'count_flops',
    'count_params',
    'knee_points',
    'pareto_front',
    'read_history',
    'read_measured',
]

__getattr__ = renamed(__name__, Study='CandidateScorer')
