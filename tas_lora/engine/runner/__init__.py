from .evolution_search_loop import EvolutionarySearchLoop
from .subnet_train_loop import SubnetSamplingTrainLoop
from .subnet_val_loop import SubnetTestLoop, SubnetValLoop
from .supernet_runner import SupernetRunner

__all__ = [
    'EvolutionarySearchLoop',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SupernetRunner',
]
