"""`import tauten.methods` lets every module be asked directly: `model.quantize(bits=4)`."""

from torch import nn

from tauten import api, api_distributed, api_parallel

_CALLS = (api.quantize, api.compress, api.optimize)
for _call in (*_CALLS, api_parallel.parallelize, api_distributed.distribute):
    setattr(nn.Module, _call.__name__, _call)
