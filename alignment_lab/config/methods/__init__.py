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
    SPPO,
    AlphaPO,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    Divergent,
    DPONorm,
    Hinge,
    Pairwise,
    Referenced,
    RobustDPO,
    SimPO,
)
from .supervised import CPT, SFT, Reward
from .unpaired import BCO, KTO, Unpaired

METHOD_SCHEMAS: dict[str, type[Method]] = {
    "sft": SFT,
    "cpt": CPT,
    "reward": Reward,
    "dpo": DPO,
    "robust_dpo": RobustDPO,
    "ipo": IPO,
    "hinge": Hinge,
    "exo": EXO,
    "nca": NCA,
    "sppo": SPPO,
    "aot": AOT,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "bco_pair": BCOPair,
    "discopop": DiscoPOP,
    "dpo_norm": DPONorm,
    "ld_dpo": LDDPO,
    "mpo": MPO,
    "orpo": ORPO,
    "simpo": SimPO,
    "alphapo": AlphaPO,
    "cpo": CPO,
    "kto": KTO,
    "bco": BCO,
}

__all__ = [
    "AOT", "BCO", "CPO", "CPT", "DPO", "EXO", "IPO", "KTO", "LDDPO", "METHOD_SCHEMAS", "MIXABLE", "MPO",
    "NCA", "ORPO", "SFT", "SPPO", "APODown", "APOZero", "AlphaPO", "BCOPair", "DPONorm", "DiscoPOP",
    "Divergence", "Divergent", "Format", "Hinge", "Method", "Pairwise", "Referenced", "Reward", "RobustDPO",
    "SimPO", "Unpaired",
]  # fmt: skip
