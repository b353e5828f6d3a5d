from .held_out import held_out_split

__all__ = ['held_out_split']
