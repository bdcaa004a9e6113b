"""What layers are mostly called, by which presets know them: patterns of the parts of a parameter's name."""

from __future__ import annotations

__all__ = ["ATTENDING", "DECODERS", "HIDDEN", "MORPHOLOGICAL", "READERS", "THROUGH", "WRITERS"]

# of transformers: the queries, keys and values of attention; what reads the embedding, and what writes it
_QKV = ("q", "k", "v", "qkv", "query", "key", "value", "w[qkv]", "w_[qkv]", "to_[qkv]", "*[qkv]_proj")
ATTENDING = (*_QKV, "[qkv]_proj_weight", "*query_proj", "*key_proj", "*value_proj")
READERS = (*ATTENDING, "*up_proj", "*gate_proj", "*c_fc", "up", "gate", "w1", "w3", "*lm_head")
_WRITE = ("o", "wo", "w_o", "out", "to_out", "output", "attention_output", "proj", "*o_proj", "*out_proj")
WRITERS = (*_WRITE, "*output_proj", "*c_proj", "*down_proj", "down", "w2")

# of autoencoders
DECODERS = ("*decoder", "decoder*", "dec", "dec_*", "*_dec")

# of input-convex networks: what takes hidden layers, and what takes the input
HIDDEN = ("z", "zs", "z[0-9]*", "z_*", "*_z", "*_zs", "*_z[0-9]*", "*_z_[0-9]*", "wz", "wzs", "wz[0-9]*", "wz_[0-9]*")
_THROUGH = ("[xu]", "[xu]s", "[xu][0-9]*", "[xu]_*", "*_[xu]", "*_[xu]s", "*_[xu][0-9]*", "*_[xu]_[0-9]*", "w_y*")
_PARTIAL = ("*_zu*", "wzu*", "*_yu*", "wyu*")  # of partially convex networks: from the context, so free
THROUGH = (*_THROUGH, *_PARTIAL, "w[xyu]", "w[xyu]s", "w[xyu][0-9]*", "w[xyu]_[0-9]*", "input*", "skip*", "pass*")

MORPHOLOGICAL = ("*dilation*", "*erosion*", "*opening*", "*closing*", "*morpho*", "*structuring*")
