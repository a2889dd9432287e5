# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .bundled import BUNDLED as BUNDLED
from .bundled import add as add
from .bundled import bundled_names as bundled_names
from .fitting import TrainRecipe as TrainRecipe
from .fitting import trained as trained
from .layout import Anatomy as Anatomy
from .layout import Block as Block
from .layout import Projection as Projection
from .layout import anatomy as anatomy
from .layout import unwrap as unwrap
from .loading import Loaded as Loaded
from .loading import load as load
from .loading import load_model as load_model
from .loading import model_folder as model_folder
from .loading import register_loader as register_loader
from .recipe import causal_recipe as causal_recipe
from .saving import load_state as load_state
from .saving import save as save
from .value_vectors import VectorPlace as VectorPlace
from .value_vectors import output_embeddings as output_embeddings
from .value_vectors import rank_by_tokens as rank_by_tokens
from .value_vectors import top_tokens as top_tokens
from .value_vectors import value_vector as value_vector
from .value_vectors import write_value_vector as write_value_vector
