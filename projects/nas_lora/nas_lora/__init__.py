"""NAS-LoRA: a searchable cell inside each LoRA of an image encoder (arXiv 2512.03499).

Importing this package registers all that a config can name as ``nas_lora.X``.
"""

from . import adapt as adapt
from . import baselines as baselines
from . import datasets as datasets
from . import encoders as encoders
from . import linear as linear
from . import losses as losses
from . import mask_decoder as mask_decoder
from . import metrics as metrics
from . import prompts as prompts
from . import runner as runner
from . import segmentor as segmentor
from . import stagewise as stagewise
from . import transforms as transforms
