from .held_out import held_out_split
from .inaturalist import INaturalist2019

__all__ = ['INaturalist2019', 'held_out_split']
