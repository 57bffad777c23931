"""The settings of every method, and the table that lists them."""

from .base import Divergence, Format, Method
from .pairwise import (
    AOT,
    CPO,
    DPO,
    EXO,
    IPO,
    LDDPO,
    MIXABLE,
    MPO,
    NCA,
    ORPO,
    PAIRWISE_SCHEMAS,
    SPPO,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    DPONorm,
    Hinge,
    RobustDPO,
    SimPO,
)
from .pairwise_base import Divergent, Pairwise, Referenced
from .supervised import CPT, SFT, Reward
from .unpaired import BCO, KTO, Unpaired

METHOD_SCHEMAS: dict[str, type[Method]] = {
    "sft": SFT,
    "cpt": CPT,
    "reward": Reward,
    **PAIRWISE_SCHEMAS,
    "kto": KTO,
    "bco": BCO,
}

__all__ = [
    "AOT", "BCO", "CPO", "CPT", "DPO", "EXO", "IPO", "KTO", "LDDPO", "METHOD_SCHEMAS", "MIXABLE", "MPO",
    "NCA", "ORPO", "PAIRWISE_SCHEMAS", "SFT", "SPPO", "APODown", "APOZero", "BCOPair", "DPONorm", "DiscoPOP",
    "Divergence", "Divergent", "Format", "Hinge", "Method", "Pairwise", "Referenced", "Reward", "RobustDPO",
    "SimPO", "Unpaired",
]  # fmt: skip
