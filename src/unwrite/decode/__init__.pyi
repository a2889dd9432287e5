# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .aded import ADED as ADED
from .aded import TrigramTable as TrigramTable
from .base import Drafter as Drafter
from .base import Strategy as Strategy
from .draft_model import DraftModel as DraftModel
from .engine.bridge import DecodeOutput as DecodeOutput
from .engine.bridge import generate as generate
from .engine.llamacpp.runtime import LlamaCppRuntime as LlamaCppRuntime
from .engine.loop import Decoded as Decoded
from .engine.planning.calibration import calibrate as calibrate
from .engine.runtime import Output as Output
from .engine.runtime import Runtime as Runtime
from .engine.stats import Stats as Stats
from .engine.stats import last_stats as last_stats
from .engine.transformers.runtime import TransformersRuntime as TransformersRuntime
from .engine.transformers.support import why_plain as why_plain
from .engine.tree import DraftTree as DraftTree
from .engine.tree import Path as Path
from .joined import Joined as Joined
from .plain import Plain as Plain
from .prompt_lookup import PromptLookup as PromptLookup
from .rsd import RSD as RSD
from .token_recycling import RecyclingTable as RecyclingTable
from .token_recycling import TokenRecycling as TokenRecycling
from .token_recycling import TreeTemplate as TreeTemplate
