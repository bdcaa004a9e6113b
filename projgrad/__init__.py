"""projgrad keeps the weights of a network inside a set while any optimizer trains them."""

from projgrad.constraint import Constraint as Constraint
from projgrad.function import as_constraint as as_constraint
from projgrad.moves import Clip as Clip
from projgrad.moves import Move as Move
from projgrad.moves import Replace as Replace
from projgrad.moves import Scale as Scale
from projgrad.precision import tolerance as tolerance
from projgrad.registry import from_dict as from_dict
from projgrad.registry import register as register
from projgrad.sets import Box as Box
from projgrad.sets import MaxNorm as MaxNorm
from projgrad.sets import MinMaxNorm as MinMaxNorm
from projgrad.sets import NonNeg as NonNeg
from projgrad.sets import NonPos as NonPos
from projgrad.sets import Simplex as Simplex
from projgrad.sets import UnitNorm as UnitNorm

__version__ = "0.1.0"
