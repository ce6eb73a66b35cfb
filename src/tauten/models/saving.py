"""What packed models refuse of transformers' methods, which know dense weights alone."""

from typing import Any, NoReturn, cast

from torch import nn

from tauten.core.errors import InputError
from tauten.models.packing import packed_modules
from tauten.runtime.modules import PackedModule


class Refused:
    """Stands for a method.

    Args:
        message: Why it is refused, and what to call.
    """

    def __init__(self, message: str):
        self._message = message

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            InputError: Always.
        """
        raise InputError(self._message)


def refuse_saving(model: nn.Module) -> nn.Module:
    """Have packed transformers models refuse `save_pretrained`, and so `push_to_hub`.

    A folder of theirs would load with random weights; so would that of a model which holds one, as
    sentence-transformers' do. Nor can a packed table get more rows.
    """
    for module in model.modules():
        if hasattr(module, "save_pretrained") and any(True for _ in packed_modules(module)):
            cast(Any, module).save_pretrained = Refused(
                f"save_pretrained: {type(module).__name__} holds packed weights, which "
                "from_pretrained can't read; pass out=FOLDER where you pack it, and read that by "
                "tauten.load(FOLDER)"
            )
    name, made = type(model).__name__, cast(Any, model)
    if hasattr(model, "resize_token_embeddings") and _has_packed_table(model):
        made.resize_token_embeddings = Refused(
            f"resize_token_embeddings: the table of {name} is packed, and its rows are what was "
            "packed; resize the model before it is packed"
        )
    return model


def _has_packed_table(model: Any) -> bool:
    try:
        tables = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # how transformers says that a model of images has none
        return False
    return any(isinstance(table, PackedModule) for table in tables)
