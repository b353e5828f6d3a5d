from .evolution_search_loop import EvolutionarySearchLoop
from .subnet_train_loop import SubnetSamplingTrainLoop
from .subnet_val_loop import SubnetTestLoop, SubnetValLoop

__all__ = [
    'EvolutionarySearchLoop',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
]
