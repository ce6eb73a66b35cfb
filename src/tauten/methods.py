"""`import tauten.methods` lets every module be asked directly: `model.quantize(bits=4)`."""

from torch import nn

from tauten import api

for _call in (api.quantize, api.compress, api.optimize, api.parallelize, api.distribute):
    setattr(nn.Module, _call.__name__, _call)
