"""Models with some stored weights narrowed, as files that the runtime can load."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnxopt.passes.infer_shapes import InferShapes

from onnxopt.runtime.messages import Kernel
from onnxopt.short_names import short_name

from ..shared.trial_files import TrialFiles, owner_by_name
from .lowering import lower_weights
from .narrowing import Form, Narrow, stored_bytes
from .stores import Store, Written, stores

__all__ = ["Trials"]


class Trials:
    """What the search builds and measures; its regions are stores, its treatments forms.

    Args:
        model: The float model. It is left as it is; its weights are written once.
        found: Its stores.
        weights: Narrowed weights, by key and form.
        block: Inputs in a block, where a form has blocks.
        written: As what narrow weights are written.
    """

    def __init__(
        self,
        model: ir.Model,
        found: Sequence[Store],
        weights: Mapping[tuple[str, Form], Narrow],
        block: int,
        written: Written = "qdq",
    ) -> None:
        self._files = TrialFiles(model)
        InferShapes()(self._files.base)
        self._weights, self._block, self._written = weights, block, written
        self._stores = {store.key: store for store in found}
        self._owners = {
            each: store.key
            for store in found
            for node in store.readers
            for name in (node.name, *(value.name for value in node.outputs))
            if name
            for each in (name, short_name(name))
        }

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def regions(self) -> Sequence[str]:
        """The keys of the stores."""
        return list(self._stores)

    def treatments(self, region: str) -> Sequence[str]:
        """The forms that a store can have."""
        return [form.value for key, form in self._weights if key == region]

    def bytes_saved(
        self, region: str, treatment: str, others: Mapping[str, str] | None = None
    ) -> int:
        """Bytes that the file gets smaller by; each store counts with all that reads it."""
        del others
        store = self._stores[region]
        narrow = self._weights[region, Form(treatment)]
        outputs = narrow.numbers.shape[1]
        return 4 * store.size - stored_bytes(store.size, outputs, Form(treatment), self._block)

    def size(self, choices: Mapping[str, str]) -> int:
        """Bytes of the model with these forms, weights included."""
        return self._files.size(self._built(choices))

    def borders(self) -> Sequence[tuple[str, str, int]]:
        """None: all that goes from one product to another is float."""
        return []

    def crosses(self, first: str | None, second: str | None) -> bool:
        """Nothing is converted between regions."""
        del first, second
        return False

    def owner(self, kernel: str) -> str | None:
        """The store that a kernel reads, by the longest name of a reader that it begins with."""
        return owner_by_name(kernel, self._owners)

    def misplaced(self, kernels: Sequence[Kernel], choices: Mapping[str, str]) -> Sequence[str]:
        """None: what is not fused is slower, and the times tell."""
        del kernels, choices
        return []

    def build(self, choices: Mapping[str, str]) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A model with some stores narrowed, as a file that is there while the context lasts."""
        return self._files.saved(self._built(choices))

    def _built(self, choices: Mapping[str, str]) -> ir.Model:
        model = self._files.base.clone()
        found = [each for each in stores(model, 0, frozenset()) if isinstance(each, Store)]
        forms = {key: Form(form) for key, form in choices.items()}
        lower_weights(model, found, forms, self._weights, self._written)
        return model
