"""What users put around a model and on its layers, and how that outlives the change of a layer.

Kept: attributes, hooks, a method of the layer's own as `forward`, further tensors. Folded into the
weight: parametrizations, weight and spectral norm, pruning masks. Refused by name: what computes
with the very module that is replaced.
"""

from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tauten.core.errors import InputError
from tauten.runtime.own_forward import ADDED

# A layer's own; everything else in it says what it is, or was put there by users.
_OWN = {"_non_persistent_buffers_set", "_parameters", "_buffers", "_modules", "_compiled_call_impl"}
_INSIDE = "pass the module that it was made from"


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Give a layer what another one has beyond its weight: attributes, hooks, further tensors."""
    for key, value in vars(old).items():
        by_class = [getattr(kind, key, None) for kind in (type(new), type(old))]
        if key in _OWN | ADDED or (key != "forward" and by_class[0] is not by_class[1]):
            continue  # the new class says otherwise what it is
        bound = isinstance(value, MethodType) and value.__self__ is old
        vars(new)[key] = MethodType(value.__func__, new) if bound else value
    for store in ("_parameters", "_buffers", "_modules"):
        known = {"weight", *ADDED} | {k for k, v in vars(new)[store].items() if v is not None}
        more = {k: v for k, v in vars(old)[store].items() if k not in known}
        vars(new)[store].update(more)
    new._non_persistent_buffers_set.update(old._non_persistent_buffers_set & set(new._buffers))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of a compiled model or of one for data parallel training.

    Raises:
        InputError: What is inside can't be reached, or the wrapper has hooks of its own.
    """
    kind = type(model).__name__
    inside = getattr(model, "_orig_mod", None)  # of torch.compile
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inside = model.module
    if inside is not None:
        if model._forward_hooks or model._forward_pre_hooks:
            raise InputError(f"the {kind} around {type(inside).__name__} has hooks: {_INSIDE}")
        return unwrapped(inside)
    if isinstance(model, torch.jit.ScriptModule) or kind == "FullyShardedDataParallel":
        raise InputError(f"the model is a {kind}, whose layers can't be replaced: {_INSIDE}")
    if isinstance(model, fx.GraphModule) and not _calls_layers(model):
        raise InputError(f"the model is a graph of operations without layers: {_INSIDE}")
    return model


def check_replaceable(model: nn.Module) -> None:
    """Raise InputError where a copy of a module would still compute with the module itself."""
    for name, module in model.named_modules():
        place = f"{name or 'the model'} ({type(module).__name__})"
        if hasattr(module, "_hf_hook"):
            raise InputError(
                f"{place} has a hook of accelerate: take it off by "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True), all weights loaded"
            )
        forward = vars(module).get("forward")
        own = isinstance(forward, MethodType) and forward.__self__ is module
        if forward is not None and not own:
            raise InputError(
                f"the forward of {place} was replaced by {forward!r}, which isn't a method of that "
                "module, so that a copy would still compute with the original: undo it, or make "
                "it a method (types.MethodType(function, module)) that calls none of the old ones"
            )


def fold_reparametrized(model: nn.Module) -> nn.Module:
    """Turn weights that are computed at each call into parameters of that value, in place.

    These are parametrizations, weight norm and spectral norm of either kind, and masks of
    `torch.nn.utils.prune`, as the model uses them in evaluation.

    Args:
        model: A copy; the classes of its modules and their tensors' storage stay as they are.
    """
    for module in list(model.modules()):
        with torch.no_grad():
            if parametrize.is_parametrized(module):
                _settle(module)
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
                elif isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _settle(module: Any) -> None:
    """Replace parametrizations by their values; torch's own way changes the shared class."""
    parametrizations = module.parametrizations.eval()  # spectral norm learns in training
    values = {name: getattr(module, name).detach() for name in parametrizations}
    learned = {
        name for name, part in parametrizations.items() if any(True for _ in part.parameters())
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if name in learned:
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)


def _calls_layers(model: fx.GraphModule) -> bool:
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    return any(True for name in called for _ in model.get_submodule(name).parameters())
