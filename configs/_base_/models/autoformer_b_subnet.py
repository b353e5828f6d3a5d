# The former name of subnet_b.py, for configs that build on it. The wheel leaves it out: MIM finds a
# config by the name of its file alone.
_base_ = './subnet_b.py'

# MMEngine takes a config with an import statement for one of another style.
__import__('warnings').warn(
    'autoformer_b_subnet.py is subnet_b.py now', DeprecationWarning, stacklevel=2
)
