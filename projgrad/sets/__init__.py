"""The sets, one file per family."""

from projgrad.sets.balls import L2Ball, LInfBall
from projgrad.sets.box import Box, NonNeg, NonPos
from projgrad.sets.cones import SecondOrderCone
from projgrad.sets.convex_sequences import Concave, Convex
from projgrad.sets.entries import Mask, Quantized
from projgrad.sets.groups import GroupL1Ball, L1InfBall
from projgrad.sets.monotone import Monotone
from projgrad.sets.morphology import Extensive, StructuringElement
from projgrad.sets.norms import MaxNorm, MinMaxNorm, UnitNorm
from projgrad.sets.orthogonal import Orthogonal
from projgrad.sets.polyhedra import Affine, Polyhedron
from projgrad.sets.simplex import CappedSimplex, L1Ball, L1Sphere, Simplex
from projgrad.sets.sparse import Cardinality, L0Groups, SparseSimplex
from projgrad.sets.spectral import NuclearNorm, Rank, SpectralNorm
from projgrad.sets.sums import Halfspace, Hyperplane, SumTo, ZeroMean
from projgrad.sets.symmetric import Correlation, PositiveSemidefinite, SkewSymmetric, Spectraplex, Symmetric
from projgrad.sets.transport import DoublyStochastic, Transport
from projgrad.sets.unimodal import Unimodal
from projgrad.sets.variation import TotalVariationBall

__all__ = [
    "Affine",
    "Box",
    "CappedSimplex",
    "Cardinality",
    "Concave",
    "Convex",
    "Correlation",
    "DoublyStochastic",
    "Extensive",
    "GroupL1Ball",
    "Halfspace",
    "Hyperplane",
    "L0Groups",
    "L1Ball",
    "L1InfBall",
    "L1Sphere",
    "L2Ball",
    "LInfBall",
    "Mask",
    "MaxNorm",
    "MinMaxNorm",
    "Monotone",
    "NonNeg",
    "NonPos",
    "NuclearNorm",
    "Orthogonal",
    "Polyhedron",
    "PositiveSemidefinite",
    "Quantized",
    "Rank",
    "SecondOrderCone",
    "Simplex",
    "SkewSymmetric",
    "SparseSimplex",
    "SpectralNorm",
    "Spectraplex",
    "StructuringElement",
    "SumTo",
    "Symmetric",
    "TotalVariationBall",
    "Transport",
    "Unimodal",
    "UnitNorm",
    "ZeroMean",
]
