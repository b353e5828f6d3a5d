from .held_out import held_out_split
from .inaturalist import INaturalist2019
from .replay import ReplayBatchSampler, ReplayDataset, replayable

__all__ = ['INaturalist2019', 'ReplayBatchSampler', 'ReplayDataset', 'held_out_split', 'replayable']
