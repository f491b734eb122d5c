"""Models with a plan carried out, as files that the runtime can load."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set

import onnx_ir as ir

from onnxopt.regions import Product, Recurrence
from onnxopt.runtime.messages import Kernel
from onnxopt.short_names import short_name

from ..shared.trial_files import TrialFiles, owner_by_name
from .lowering import lower
from .numbers import Numbers
from .plan import Mode, Plan, treatment
from .territory import Territory

__all__ = ["Trials", "Workshop", "modes_for", "name_nodes"]


#: What products run as in float, wanted or not.
_FLOAT_KERNELS = frozenset(
    ["Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"]
)
#: About what the nodes and scales weigh that a product gets.
_NODE_BYTES = 600


def name_nodes(model: ir.Model) -> None:
    """Call nodes without a name after what they give, so that kernels can be told apart."""
    for node in model.graph:
        if not node.name and node.outputs:
            node.name = node.outputs[0].name


def modes_for(product: Product | Recurrence, allowed: Sequence[Mode]) -> list[Mode]:
    """The modes that a product can have, of those that are allowed."""
    if isinstance(product, Recurrence):
        return [mode for mode in allowed if mode is Mode.DYNAMIC]
    match product.node.op_type:
        case "Conv":
            possible = {Mode.STATIC}
        case "Gemm":
            possible = {Mode.STATIC, Mode.STATIC_INPUT, Mode.DYNAMIC}
        case _:
            possible = {Mode.STATIC_INPUT, Mode.DYNAMIC}
            if product.bias_node is None:
                possible.add(Mode.STATIC)
    return [mode for mode in allowed if mode in possible]


class Workshop:
    """Writes models with plans carried out, each as a file that the runtime can load.

    The weights of the float model are written once; the files of single trials refer to them.

    Args:
        model: The float model. It is left as it is.
    """

    def __init__(self, model: ir.Model) -> None:
        self._files = TrialFiles(model)
        _annotate(self._files.base, model)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(
        self, plan: Plan, numbers: Numbers | None
    ) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A model with a plan carried out, as a file that is there while the context lasts."""
        return self._files.saved(self._built(plan, numbers))

    def size(self, plan: Plan, numbers: Numbers) -> int:
        """Bytes of a model with a plan carried out, as one file."""
        return self._files.size(self._built(plan, numbers))

    def _built(self, plan: Plan, numbers: Numbers | None) -> ir.Model:
        model = self._files.base.clone()
        if plan.quantizes:
            assert numbers is not None
            lower(model, plan, numbers)
        return model


def _annotate(model: ir.Model, known: ir.Model) -> None:
    """Give the values of a model the types and shapes that they have in another one.

    Inference might find other ones where it does not see small weights, and another plan with that.
    """
    values = {value.name: value for node in known.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            found = values.get(value.name)
            if found is not None:
                value.type = found.type
                value.shape = None if found.shape is None else found.shape.copy()


class Trials:
    """What the search builds and measures; its regions are products, its treatments modes.

    Args:
        workshop: Writes the models.
        model: The float model.
        found: Its products that can be quantized.
        numbers: Ranges, weights and biases.
        allowed: Modes to choose from, the preferred ones first.
        sizes: How many numbers a tensor has, by name.
        recurrent: Its recurrent layers that can be quantized.
    """

    def __init__(
        self,
        workshop: Workshop,
        model: ir.Model,
        found: Sequence[Product],
        numbers: Numbers,
        allowed: Sequence[Mode],
        sizes: Mapping[str, int],
        recurrent: Sequence[Recurrence] = (),
    ) -> None:
        self._workshop, self._numbers = workshop, numbers
        self._products = {product.key: product for product in found}
        regions: list[Product | Recurrence] = [*found, *recurrent]
        self._regions = {each.key: each for each in regions}
        self._nodes = {each.node for each in self._regions.values()}
        self._modes = {key: modes_for(each, allowed) for key, each in self._regions.items()}
        self._owners = _owners(model.graph, list(self._regions.values()))
        self._borders = list(_borders(model.graph, found, numbers, self._modes, sizes))

    def regions(self) -> Sequence[str]:
        """The keys of the products."""
        return list(self._regions)

    def treatments(self, region: str) -> Sequence[str]:
        """The modes that a product can have, and those with an even input, where that may pay."""
        modes = self._modes[region]
        plain = [treatment(mode) for mode in modes]
        if region not in self._numbers.divided:
            return plain
        return [*plain, *(treatment(mode, smoothed=True) for mode in modes)]

    def bytes_saved(
        self, region: str, treatment: str, others: Mapping[str, str] | None = None
    ) -> int:
        """Three of four bytes of each weight, or less than none where the float weights stay."""
        del treatment
        found, treated = self._regions[region], self._nodes
        if others is not None:
            treated = {self._regions[key].node for key in (region, *others)}
        shrinks = not _read_elsewhere(found, treated)
        return (3 if shrinks else -1) * found.weight_count - _NODE_BYTES

    def size(self, choices: Mapping[str, str]) -> int:
        """Bytes of the model with these modes, weights included."""
        return self._workshop.size(Plan.of(choices), self._numbers)

    def borders(self) -> Sequence[tuple[str, str, int]]:
        """Products that hand values to one another in 8 bits when both are static."""
        return self._borders

    def crosses(self, first: str | None, second: str | None) -> bool:
        """Whether a value leaves 8 bits, or enters them, from one product to the next."""
        modes = Plan.of({name: text for name, text in (("a", first), ("b", second)) if text})
        narrow = modes.keys(Mode.STATIC, Mode.STATIC_INPUT)
        return len(narrow) == 1

    def owner(self, kernel: str) -> str | None:
        """The product that a kernel belongs to, by the longest name of its own that it begins with.

        The runtime names kernels after nodes or after what they give, and adds to that.
        """
        return owner_by_name(kernel, self._owners)

    def misplaced(self, kernels: Sequence[Kernel], choices: Mapping[str, str]) -> Sequence[str]:
        """Products that are computed in float although they are quantized.

        With 16-bit activations all are on a CPU: the model is for other hardware.
        """
        if self._numbers.bits != 8:
            return []
        names = {
            name: product.key
            for product in self._products.values()
            for name in (product.node.name, *(node.outputs[0].name for node in product.nodes))
            if name
        }
        float_ones = [kernel.node for kernel in kernels if kernel.op_type in _FLOAT_KERNELS]
        found = (owner_by_name(node, names) for node in float_ones)
        return [key for key in found if key is not None and key in choices]

    def build(self, choices: Mapping[str, str]) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A model with some products quantized, as a file."""
        return self._workshop.write(Plan.of(choices), self._numbers)


def _read_elsewhere(found: Product | Recurrence, treated: Set[ir.Node]) -> bool:
    """Whether anything else than what can be treated reads the weights of a product."""
    return any(_is_read(found.node, at, treated) for at in found.weight_inputs)


def _is_read(reader: ir.Node, index: int, treated: Set[ir.Node]) -> bool:
    value = reader.inputs[index]
    while value is not None:
        if value.is_graph_output() or any(
            user is not reader and user not in treated for user, _ in value.uses()
        ):
            return True
        producer = value.producer()
        if producer is None or not producer.inputs:
            return False
        value, reader = producer.inputs[0], producer  # what lies between only moves numbers
    return False


def _borders(
    graph: ir.Graph,
    found: Sequence[Product],
    numbers: Numbers,
    modes: Mapping[str, Sequence[Mode]],
    sizes: Mapping[str, int],
) -> Iterator[tuple[str, str, int]]:
    """From each static product, through what would follow it, to the products that read it."""
    static = {key: Mode.STATIC for key, each in modes.items() if Mode.STATIC in each}
    territory = Territory(graph, Plan(static), numbers)
    sources: dict[ir.Value, set[str]] = {}
    readers: dict[ir.Value, list[str]] = {}
    for product in found:
        readers.setdefault(product.activation, []).append(product.key)
        if product.key in static:
            sources[product.output] = {product.key}
    for node in graph:
        following = territory.followers.get(node)
        if following is not None:
            inputs = [node.inputs[at] for at in following.activations]
            through = set().union(*(sources.get(value, set()) for value in inputs if value))
            sources[territory.effective(node.outputs[0])] = through
    for value, keys in sources.items():
        for reader in readers.get(value, []):
            for key in keys:
                yield key, reader, sizes.get(value.name or "", 0)


def _owners(graph: ir.Graph, found: Sequence[Product | Recurrence]) -> dict[str, str]:
    """Products by the names of nodes and values that kernels may be called after.

    What lies behind a product belongs to it: the runtime computes some of that along with it, and
    the rest takes as long in all plans.
    """
    products = {node: product.key for product in found for node in product.nodes}
    owners: dict[ir.Value | None, str] = {}
    names: dict[str, str] = {}
    for node in graph:
        known = [owners[value] for value in node.inputs if value in owners]
        owner = products.get(node, known[0] if known else None)
        if owner is None:
            continue
        owners.update(dict.fromkeys(node.outputs, owner))
        for name in (node.name, *(value.name for value in node.outputs)):
            if name:
                names[name] = names[short_name(name)] = owner
    return names
