from .elastic_vit import ElasticViT

__all__ = ['ElasticViT']
