"""Feeds: the inputs of one run, read from .npz files or made up from the model's signature.

A feed is a dict from input name to array. Sizes of dynamic dimensions and integers are made up so
that the model runs: token ids stay within the table they index, masks are ones, and sizes grow
until the model takes them.
"""

from onnxopt.data.feed import Feed, input_named, required_inputs
from onnxopt.data.portable import Portable
from onnxopt.data.request import FeedRequest, value_from_text
from onnxopt.data.source import FeedSource

__all__ = [
    "Feed",
    "FeedRequest",
    "FeedSource",
    "Portable",
    "input_named",
    "required_inputs",
    "value_from_text",
]
