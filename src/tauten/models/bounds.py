"""How large a model can be that a file holds the weights of.

A configuration may claim anything, and building a model of it takes memory and time by what it
claims: so what it claims is compared with the file first.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from tauten.core.errors import CorruptError, InputError, first_line
from tauten.core.figures import format_bytes

# Of any file, however small.
LAYERS, SIZE, PARAMETERS, ELEMENTS, BUFFER_BYTES = 1000, 2**20, 10_000, 2**24, 2**27
_LAYERS = re.compile(r"(^|[._])(n_?)?(layers?|blocks?|block_count)$")
_SIZES = re.compile(r"(^|[._])(\w*size|dim|labels|experts|heads?|channels|depth|embd)s?$")


@dataclass(frozen=True)
class Bounds:
    """What a file of weights allows.

    Attributes:
        tensors: That it holds.
        size_bytes: Of it.
    """

    tensors: int
    size_bytes: int

    def check_numbers(self, settings: Mapping[str, Any], where: str) -> None:
        """Refuse a configuration of more layers than the file has tensors, and the like.

        Args:
            settings: The configuration, perhaps with others inside.
            where: Names its file.
        Raises:
            CorruptError: A number is far more than the file can hold.
        """
        for key, value in settings.items():
            if isinstance(value, Mapping):
                self.check_numbers(value, where)
            most = self._most(key)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and abs(number) > most:
                    raise CorruptError(
                        f"{where}: {key}={number}: expected at most {most}, for {self.tensors} "
                        f"tensors of {format_bytes(self.size_bytes)}; get the files that belong "
                        "together"
                    )

    def _most(self, key: str) -> float:
        if _LAYERS.search(key):
            return max(LAYERS, self.tensors)
        if _SIZES.search(key):
            return max(SIZE, 8 * self.size_bytes)  # a weight takes a bit at least
        return float("inf")

    def check_model(self, build: Callable[[], nn.Module], where: str) -> nn.Module:
        """Build a model without memory for its tensors, and refuse one that the file can't hold.

        Args:
            build: Makes the model.
            where: Names the file of its configuration.
        Returns:
            The model, all its tensors on the meta device.
        Raises:
            InputError: It can't be built.
            CorruptError: It is far larger than the file can hold.
        """
        with torch.device("meta"), self._counted(where):
            try:
                return build()
            except InputError:
                raise
            except Exception as error:  # a model's code may raise anything of odd values
                raise InputError(
                    f"{where}: transformers can't build this model "
                    f"({type(error).__name__}: {first_line(error)}); get the file anew"
                ) from None

    @contextlib.contextmanager
    def _counted(self, where: str) -> Iterator[None]:
        """Stop the building of a model that has too many parameters, or too large buffers."""
        parameters = elements = buffer_bytes = 0
        # A matrix of an expert has 2**12 bits at least, and may be one of many in a stored tensor.
        most = PARAMETERS + 4 * self.tensors + 8 * self.size_bytes // 2**12
        # A byte holds the bits of 8 weights, and entropy coding makes them 8 times fewer at best.
        most_elements = ELEMENTS + 64 * self.size_bytes

        building = threading.get_ident()

        def count(_: nn.Module, name: str, tensor: Tensor | None) -> None:
            nonlocal parameters, elements, buffer_bytes
            if threading.get_ident() != building:  # hooks are those of the whole process
                return
            if isinstance(tensor, nn.Parameter):
                parameters, elements = parameters + 1, elements + tensor.numel()
            elif tensor is not None:
                buffer_bytes += tensor.nbytes
            is_large = elements > most_elements or buffer_bytes > BUFFER_BYTES + self.size_bytes
            if parameters > most or is_large:
                raise CorruptError(
                    f"{where}: describes a model with far more than the {self.tensors} tensors of "
                    f"{format_bytes(self.size_bytes)} that are stored, by its {name!r}; get the "
                    "files that belong together"
                )

        hooks = (
            register_module_parameter_registration_hook(count),
            register_module_buffer_registration_hook(count),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
