"""One subnet trained alone from scratch, as long as the supernet.

python run.py --parts independent
"""

_base_ = './supernet.py'
