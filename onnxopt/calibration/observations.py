"""What has been observed of a model's tensors: kept, stored, loaded, merged, and used again."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from onnxopt.calibration.channels import Channels
from onnxopt.calibration.fingerprint import DIGEST_MODULUS
from onnxopt.calibration.gram import Gram
from onnxopt.calibration.histogram import Histogram
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.calibration.range import Range
from onnxopt.calibration.rows import Rows, RowsObserver
from onnxopt.errors import CalibrationError
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput

__all__ = ["Observations"]

T = TypeVar("T", bound=Observer)

_FORMAT = 3
_SPECS: Mapping[str, type[ObserverSpec[Any]]] = {
    spec.kind: spec for spec in (Channels, Gram, Histogram, Range, Rows)
}
_LAYERS: Mapping[str, type[LayerInput]] = {
    "convolution": ConvolutionInput,
    "product": ProductInput,
}


@dataclasses.dataclass
class Observations:
    """Observers by tensor and spec.

    Attributes:
        observers: What was seen, by tensor name and spec.
        samples: How many samples were run.
        digest: Sum of the samples' hashes, modulo 2^64: which samples these were.
        fingerprints: What each tensor is computed from, as a hash.
        left_alone: Why a tensor was not observed, by name: a phrase.
    """

    observers: dict[str, dict[ObserverSpec[Any], Observer]] = dataclasses.field(
        default_factory=dict
    )
    samples: int = 0
    digest: int = 0
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    left_alone: dict[str, str] = dataclasses.field(default_factory=dict)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.observers

    def get(self, tensor: str, spec: ObserverSpec[T]) -> T:
        """What an observer saw of a tensor.

        Raises:
            CalibrationError: When it was not observed; says why.
        """
        found = self.observers.get(tensor, {}).get(spec)
        if found is None:
            reason = self.left_alone.get(tensor, f"its {spec.kind} was not asked for")
            raise CalibrationError(f"tensor '{tensor}' was not observed: {reason}")
        return found  # type: ignore[return-value]  # a spec stands beside what it started

    def rows(self, tensor: str, layer: LayerInput) -> RowsObserver | None:
        """The most rows that were kept of a layer's input; None where none were asked for."""
        asked = [s for s in self.observers.get(tensor, {}) if isinstance(s, Rows)]
        specs = [spec for spec in asked if spec.layer == layer]
        if not specs:
            return None
        most = max(specs, key=lambda spec: spec.most_bytes)
        return self.get(tensor, most)

    def matching(self, fingerprint: str, spec: ObserverSpec[T]) -> T | None:
        """What an observer saw of a tensor that is computed in the same way, whatever its name."""
        for tensor, known in self.fingerprints.items():
            if known == fingerprint and spec in self.observers.get(tensor, {}):
                return self.get(tensor, spec)
        return None

    def merge(self, other: Observations) -> Observations:
        """What one pass over the samples of both would have seen.

        Extremes, counts and sums are exactly so, Gram matrices to rounding. Of the rows of both
        those with the least lots are kept; one pass would have drawn others.

        Raises:
            CalibrationError: When the two are not of the same tensors of the same model.
        """
        merged = copy.deepcopy(self)
        for tensor in sorted({*self.observers, *other.observers}):
            mine, theirs = self.observers.get(tensor, {}), other.observers.get(tensor, {})
            if mine.keys() != theirs.keys():
                raise CalibrationError(
                    f"observations do not merge: not the same was asked of tensor '{tensor}'"
                )
            if self.fingerprints.get(tensor) != other.fingerprints.get(tensor):
                raise CalibrationError(
                    f"observations do not merge: tensor '{tensor}' is computed in another way"
                )
            for spec, observer in merged.observers[tensor].items():
                try:
                    observer.merge(theirs[spec])
                except ValueError as error:
                    raise CalibrationError(
                        f"observations of tensor '{tensor}' do not merge: {error}"
                    ) from error
        merged.samples += other.samples
        merged.digest = (self.digest + other.digest) % DIGEST_MODULUS
        merged.left_alone.update(other.left_alone)
        return merged

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an ``.npz`` file."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        entries = []
        for tensor, observers in self.observers.items():
            for spec, observer in observers.items():
                entries.append({"tensor": tensor, "spec": _encode(spec)})
                for name, array in observer.arrays().items():
                    arrays[f"{len(entries) - 1}.{name}"] = array
        index = {
            "format": _FORMAT,
            "entries": entries,
            "samples": self.samples,
            "digest": str(self.digest),
            "fingerprints": self.fingerprints,
            "left_alone": self.left_alone,
        }
        path = pathlib.Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, index=np.array(json.dumps(index)), **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Observations:
        """Read what `save` wrote.

        Raises:
            CalibrationError: When the file holds no observations of a known format.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                index = json.loads(str(archive["index"]))
                if index["format"] != _FORMAT:
                    raise CalibrationError(
                        f"{path} holds observations of another version: observe again"
                    )
                made = cls(
                    samples=index["samples"],
                    digest=int(index["digest"]),
                    fingerprints=index["fingerprints"],
                    left_alone=index["left_alone"],
                )
                for number, entry in enumerate(index["entries"]):
                    spec = _decode(entry["spec"])
                    prefix = f"{number}."
                    arrays = {
                        name.removeprefix(prefix): archive[name]
                        for name in archive.files
                        if name.startswith(prefix)
                    }
                    observers = made.observers.setdefault(entry["tensor"], {})
                    observers[spec] = spec.restore(arrays)
        except CalibrationError:
            raise
        except FileNotFoundError as error:
            raise CalibrationError(f"{path} does not exist") from error
        except Exception as error:  # zipfile, json, numpy and missing keys each have their own
            raise CalibrationError(f"{path} holds no observations: {error}") from error
        return made


def _encode(spec: ObserverSpec[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": spec.kind}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, LayerInput):
            kind = next(kind for kind, layer in _LAYERS.items() if type(value) is layer)
            value = {"kind": kind, **dataclasses.asdict(value)}
        fields[field.name] = value
    return fields


def _decode(fields: Mapping[str, Any]) -> ObserverSpec[Any]:
    given = {name: value for name, value in fields.items() if name != "kind"}
    if "layer" in given:
        layer = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given["layer"].items()
        }
        given["layer"] = _LAYERS[str(layer.pop("kind"))](**layer)
    return _SPECS[fields["kind"]](**given)
