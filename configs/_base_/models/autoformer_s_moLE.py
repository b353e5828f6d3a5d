# The former name of mole_s.py, for configs that build on it. The wheel leaves it out: MIM finds a
# config by the name of its file alone.
_base_ = './mole_s.py'

# MMEngine takes a config with an import statement for one of another style.
__import__('warnings').warn(
    'autoformer_s_moLE.py is mole_s.py now', DeprecationWarning, stacklevel=2
)
