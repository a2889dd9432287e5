# Written by `unwrite docs` from the catalogue, for type checkers and editors.

from .nets.controls import ChannelMerging as ChannelMerging
from .nets.controls import ExchangedChannels as ExchangedChannels
from .nets.controls import LeastSquaresOnData as LeastSquaresOnData
from .nets.controls import reestimate_norms as reestimate_norms
from .nets.graph import NetGraph as NetGraph
from .nets.graph import NetLayer as NetLayer
from .nets.graph import net_graph as net_graph
from .nets.quantise import QuantisedWeight as QuantisedWeight
from .nets.quantise import quantise as quantise
from .nets.reconstruction import Damage as Damage
from .nets.reconstruction import RidgeCombination as RidgeCombination
from .nets.report import CompressedLayerReport as CompressedLayerReport
from .nets.report import NetReport as NetReport
from .nets.storing import load_compressed as load_compressed
from .nets.storing import save_compressed as save_compressed
from .nets.udfc import UDFC as UDFC
