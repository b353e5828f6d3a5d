"""NAS-LoRA: a searchable cell inside each LoRA of a vision transformer (arXiv 2512.03499).

Importing this package registers all that a config can name as ``nas_lora.X``.
"""

from . import runner as runner
from .baselines import adapters as adapters
from .baselines import conv_lora as conv_lora
from .baselines import prompts as prompts
from .cells import linear as linear
from .cells import stagewise as stagewise
from .segmentation import datasets as datasets
from .segmentation import losses as losses
from .segmentation import mask_decoder as mask_decoder
from .segmentation import metrics as metrics
from .segmentation import segmentor as segmentor
from .segmentation import transforms as transforms
from .vits import adapt as adapt
from .vits import encoders as encoders
