# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .contexts.arc_encoder import ArcEncoder as ArcEncoder
from .contexts.batches import ContextText as ContextText
from .contexts.batches import context_pieces as context_pieces
from .contexts.batches import few_shot_row as few_shot_row
from .contexts.inputs import DecoderInputs as DecoderInputs
from .contexts.inputs import MixedRow as MixedRow
from .contexts.inputs import mixed_inputs as mixed_inputs
from .contexts.native import arc_from_native as arc_from_native
from .contexts.pipeline import ArcPipeline as ArcPipeline
from .contexts.pipeline import CompressedText as CompressedText
from .contexts.pipeline import LearnedText as LearnedText
from .contexts.settings import ArcSettings as ArcSettings
from .contexts.training import ArcTrainer as ArcTrainer
from .contexts.training import ArcTraining as ArcTraining
from .contexts.training import train_arc as train_arc
