from .plain_checkpoints import PlainCheckpoints

__all__ = ['PlainCheckpoints']
