"""Where a quantized model loses accuracy: signal to noise layer by layer, and what makes it."""

from onnxopt.noise.counterparts import Codes, Counterpart, counterparts
from onnxopt.noise.measuring import LayerNoise, layer_noise

__all__ = ["Codes", "Counterpart", "LayerNoise", "counterparts", "layer_noise"]
