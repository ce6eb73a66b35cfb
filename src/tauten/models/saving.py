"""`save_pretrained` of packed models, of which transformers would write what it can't read."""

from typing import Any, NoReturn

from torch import nn

from tauten.core.errors import InputError
from tauten.models.packing import packed_modules


class Unsaved:
    """Stands for `save_pretrained`: a folder of its would load with random weights.

    Args:
        name: Of the model.
    """

    def __init__(self, name: str):
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"save_pretrained: {self._name} holds packed weights, which from_pretrained can't "
            "read; pass out=FOLDER where you pack it, and read that by tauten.load(FOLDER)"
        )


def refuse_saving(model: nn.Module) -> nn.Module:
    """Have a packed transformers model refuse `save_pretrained`, and so `push_to_hub`."""
    if hasattr(model, "save_pretrained") and any(True for _ in packed_modules(model)):
        refusal: Any = Unsaved(type(model).__name__)
        model.save_pretrained = refusal
    return model
