"""The sets, one file per family."""

from projgrad.sets.box import Box as Box
from projgrad.sets.box import NonNeg as NonNeg
from projgrad.sets.box import NonPos as NonPos
from projgrad.sets.norms import MaxNorm as MaxNorm
from projgrad.sets.norms import MinMaxNorm as MinMaxNorm
from projgrad.sets.norms import UnitNorm as UnitNorm
from projgrad.sets.simplex import Simplex as Simplex
