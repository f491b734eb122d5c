"""What becomes a parameter, what is refused, and how the module behaves."""

import copy
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxopt.errors import FeedError, OptionError, UnsupportedModelError
from onnxopt.model import from_proto
from onnxopt.training import OnnxModule, import_model, write_back
from onnxopt.training.program import Step

RNG = np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    tensors: Mapping[str, Any],
    x: Sequence[int | str] = ("n", 3, "h", "w"),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def imported(proto: onnx.ModelProto, **settings: Any) -> OnnxModule:
    return import_model(from_proto(proto), **settings)


def assert_like_the_runtime(proto: onnx.ModelProto, module: OnnxModule, x: np.ndarray) -> None:
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    with torch.no_grad():
        results = module(torch.from_numpy(x))
    results = results if isinstance(results, tuple) else (results,)
    for given, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(given.numpy(), wanted, rtol=1e-4, atol=1e-5)


class TestParameters:
    def test_of_a_convolutional_network(self) -> None:
        nodes = [
            node("Sub", "x mean", "centred"),  # before any layer: how inputs are prepared
            node("Conv", "centred w b", "c", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "c gamma beta mu var", "n"),
            node("Mul", "n layer_scale", "m"),
            node("Add", "m three", "a"),  # of a hard swish
            node("Clip", "a zero six", "k"),
            node("PRelu", "k slope", "p"),
            node("ConvTranspose", "p up", "u"),
            node("Add", "u one_channel", "y"),  # the bias of one channel
        ]
        tensors = {
            "mean": floats(1, 3, 1, 1),
            "w": floats(4, 3, 3, 3),
            "b": floats(4),
            "gamma": floats(4),
            "beta": floats(4),
            "mu": floats(4),
            "var": np.abs(floats(4)) + 0.5,
            "layer_scale": floats(1, 4, 1, 1),
            "three": np.float32(3),
            "zero": np.float32(0),
            "six": np.float32(6),
            "slope": floats(4, 1, 1),
            "up": floats(4, 1, 2, 2),
            "one_channel": floats(1),
        }
        proto = model(nodes, tensors)
        module = imported(proto)
        kept = {"mean", "mu", "var", "three", "zero", "six"}
        assert set(module.weights) == set(tensors) - kept
        assert_like_the_runtime(proto, module, floats(2, 3, 5, 4))

    def test_a_number_in_the_making_of_a_kernel_is_none(self) -> None:
        """A rate of samples is no weight; the kernel that is rescaled by it is."""
        nodes = [
            node("Div", "kernel rate", "slower"),
            node("Mul", "gain slower", "w"),
            node("Conv", "x w", "y"),
        ]
        tensors = {"kernel": floats(4, 3, 1, 1), "rate": np.float32(441), "gain": np.float32(2)}
        proto = model(nodes, tensors)
        module = imported(proto)
        assert set(module.weights) == {"kernel"}
        assert_like_the_runtime(proto, module, floats(2, 3, 5, 4))

    def test_of_a_transformer(self) -> None:
        nodes = [
            node("MatMul", "x patches", "p"),
            node("Shape", "p", "shape"),
            node("Gather", "shape zero", "batch"),
            node("Concat", "batch rest", "class_shape", axis=0),
            node("Expand", "class_token class_shape", "class"),
            node("Concat", "class p", "tokens", axis=1),
            node("Add", "tokens positions", "e"),
            node("Transpose", "keys_turned", "keys", perm=[1, 0]),
            node("MatMul", "e keys", "k"),
            node("Transpose", "k", "kt", perm=[0, 2, 1]),
            node("MatMul", "e kt", "scores"),
            node("Mul", "scores rescale", "scaled"),
            node("Add", "scaled mask", "masked"),
            node("Softmax", "masked", "shares"),
            node("MatMul", "shares e", "mixed"),
            node("Mul", "mixed rotation", "rotated"),
            node("LayerNormalization", "rotated norm_w norm_b", "normal"),
            node("MatMul", "normal head", "logits"),
            node("Add", "logits head_b", "biased"),
            node("Softmax", "biased", "y"),
        ]
        mask = np.triu(np.full((5, 5), -100, np.float32), 1)
        tensors = {
            "patches": floats(6, 8),
            "zero": np.array([0]),
            "rest": np.array([1, 8]),
            "class_token": floats(1, 1, 8),
            "positions": floats(1, 5, 8),
            "keys_turned": floats(8, 8),
            "rescale": np.float32(0.35),
            "mask": mask,
            "rotation": np.cos(np.arange(40, dtype=np.float32)).reshape(5, 8),
            "norm_w": floats(8),
            "norm_b": floats(8),
            "head": floats(8, 3),
            "head_b": floats(3),
        }
        proto = model(nodes, tensors, x=("n", 4, 6))
        module = imported(proto)
        kept = {"zero", "rest", "rescale", "mask", "rotation"}
        assert set(module.weights) == set(tensors) - kept
        assert_like_the_runtime(proto, module, floats(3, 4, 6))
        module(torch.from_numpy(floats(2, 4, 6)))[..., 0].square().mean().backward()
        assert all(each.grad is not None and each.grad.any() for each in module.parameters())

    def test_are_tables_of_embeddings_and_not_of_rotations(self) -> None:
        """A row for each position: added it is learned, multiplied it is a rotation."""
        nodes = [
            node("MatMul", "x w", "h"),
            node("Cast", "x", "indices", to=TensorProto.INT64),
            node("Slice", "indices zero one one", "column"),
            node("Squeeze", "column one", "places"),
            node("Gather", "learned places", "added"),
            node("Gather", "rotation places", "turns"),
            node("Unsqueeze", "turns zero", "wide"),
            node("Mul", "h wide", "turned"),
            node("Add", "turned added", "y"),
        ]
        tensors = {
            "w": floats(4, 4),
            "zero": np.array([0]),
            "one": np.array([1]),
            "learned": floats(6, 4),
            "rotation": floats(6, 4),
        }
        module = imported(model(nodes, tensors, x=("n", 4)))
        assert set(module.weights) == {"w", "learned"}

    def test_after_a_branch_that_only_captures(self) -> None:
        """The condition is constant, the branch is not: what follows meets data, not weights."""
        branches = {
            f"{name}_branch": helper.make_graph(
                [node("Neg", "x", name)],
                name,
                [],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            )
            for name in ("then", "else")
        }
        nodes = [
            node("If", "yes", "z", **branches),
            node("Mul", "z scale", "scaled"),
            node("MatMul", "scaled w", "y"),
        ]
        tensors = {"yes": np.array(True), "scale": floats(3), "w": floats(3, 3)}
        module = imported(model(nodes, tensors, x=("n", 3)))
        assert set(module.weights) == {"w"}

    def test_can_be_frozen_and_added(self) -> None:
        nodes = [node("Conv", "x conv.w conv.b", "c"), node("Mul", "c factor", "y")]
        tensors = {"conv.w": floats(2, 3, 1, 1), "conv.b": floats(2), "factor": floats(1)}
        proto = model(nodes, tensors)
        assert set(imported(proto).weights) == {"conv.w", "conv.b"}
        chosen = imported(proto, frozen=["*.b"], trainable=["fact?r"])
        assert set(chosen.weights) == {"conv.w", "factor"}
        for settings in ({"frozen": ["nothing*"]}, {"trainable": ["nothing*"]}):
            with pytest.raises(OptionError, match=r"called 'nothing\*'"):
                imported(proto, **settings)

    def test_shared_by_two_layers_are_one(self) -> None:
        nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "y")]
        proto = model(nodes, {"w": floats(4, 4)}, x=("n", 4))
        module = imported(proto)
        assert len(list(module.parameters())) == 1
        assert_like_the_runtime(proto, module, floats(3, 4))

    def test_in_constant_nodes_train_and_go_back(self) -> None:
        weight = numpy_helper.from_array(floats(4, 2), "w")
        nodes = [
            helper.make_node("Constant", [], ["w"], value=weight),
            node("MatMul", "x w", "y"),
        ]
        graph = from_proto(model(nodes, {}, x=("n", 4)))
        module = import_model(graph)
        with torch.no_grad():
            module.weights["w"].mul_(2.0)
        assert write_back(module, graph) == ["w"]
        tensor = graph.graph.node(0).attributes["value"].as_tensor()
        np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(weight) * 2)

    def test_have_names_that_pytorch_can_take(self) -> None:
        names = ["a.b", "a/b", "forward", "training", "onnx::MatMul_3"]
        nodes = []
        for place, name in enumerate(names):
            source = "x" if place == 0 else f"v{place - 1}"
            nodes.append(helper.make_node("MatMul", [source, name], [f"v{place}"]))
        nodes.append(node("Identity", f"v{len(names) - 1}", "y"))
        proto = model(nodes, {name: floats(3, 3) for name in names}, x=("n", 3))
        module = imported(proto)
        assert list(module.weights) == names
        assert len(module.state_dict()) == len(names)
        assert_like_the_runtime(proto, module, floats(2, 3))


class TestRefusals:
    def test_name_every_node(self) -> None:
        nodes = [
            node("NonMaxSuppression", "x x", "boxes", name="first"),
            helper.make_node("Mystery", ["x"], ["m"], domain="com.example", name="second"),
            node("SequenceAt", "m count", "looped", name="third"),
            node("Resize", "looped  scales", "y", antialias=1, mode="linear", name="fourth"),
        ]
        nodes[3].input[:] = ["looped", "", "scales"]
        proto = model(nodes, {"count": 3, "scales": floats(4)}, opset=18)
        proto.opset_import.append(helper.make_opsetid("com.example", 1))
        with pytest.raises(UnsupportedModelError) as refusal:
            imported(proto)
        message = str(refusal.value)
        assert message.startswith("3 nodes cannot be turned into PyTorch")
        assert "Mystery 'second': operator of the domain com.example" in message
        assert "SequenceAt 'third': operator is not supported" in message
        assert "Resize 'fourth': Resize with antialiasing" in message
        assert "first" not in message  # nothing reads it

    def test_attributes_of_the_future(self) -> None:
        proto = model([node("Relu", "x", "y", name="r", leak=0.1)], {})
        with pytest.raises(UnsupportedModelError, match="Relu 'r': attribute leak is not known"):
            imported(proto)

    def test_without_pytorch_say_how_to_get_it(self) -> None:
        program = "import sys; sys.modules['torch'] = None; import onnxopt.training"
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert result.returncode != 0
        assert "pip install 'onnxopt[train]'" in result.stderr.splitlines()[-1]

    def test_wrong_inputs(self) -> None:
        module = imported(model([node("Relu", "x", "y")], {}))
        x = torch.zeros(1, 3, 2, 2)
        for arguments, named in (((), {}), ((x, x), {}), ((), {"z": x}), ((x,), {"x": x})):
            with pytest.raises(FeedError, match="the model takes the inputs x"):
                module(*arguments, **named)

    def test_an_error_while_it_runs_names_the_node(self) -> None:
        module = imported(model([node("MatMul", "x w", "y", name="mm")], {"w": floats(4, 2)}))
        with pytest.raises(RuntimeError) as error:
            module(torch.zeros(2, 3))
        assert "in MatMul 'mm'" in error.value.__notes__


STATISTICS = {
    "gamma": np.array([1, 2, 3], np.float32),
    "beta": np.array([0, 1, 0], np.float32),
    "mean": np.array([0.5, 0, -0.5], np.float32),
    "var": np.array([1, 2, 0.5], np.float32),
}
NORMALIZED = (node("BatchNormalization", "x gamma beta mean var", "y", momentum=0.8),)


class TestBatchNormalization:
    def test_keeps_its_statistics_by_default(self) -> None:
        proto = model(NORMALIZED, STATISTICS)
        module = imported(proto).train()
        assert set(module.weights) == {"gamma", "beta"}
        assert_like_the_runtime(proto, module, floats(4, 3, 5, 5))

    def test_takes_those_of_the_batch_when_asked(self) -> None:
        graph = from_proto(model(NORMALIZED, STATISTICS))
        module = import_model(graph, batch_statistics=True).train()
        x = torch.from_numpy(floats(4, 3, 5, 5)) + 2.0
        y = module(x)
        plain = torch.nn.functional.batch_norm(
            x, None, None, module.weights["gamma"], module.weights["beta"], True
        )
        torch.testing.assert_close(y, plain)
        follow = 0.8 * STATISTICS["mean"] + 0.2 * x.mean((0, 2, 3)).numpy()
        np.testing.assert_allclose(module.weights["mean"].numpy(), follow, rtol=1e-4, atol=1e-6)
        assert len(list(module.parameters())) == 2
        assert set(write_back(module, graph)) == {"mean", "var"}
        before = module.weights["mean"].clone()
        module.eval()(x)
        assert torch.equal(module.weights["mean"], before)

    @pytest.mark.parametrize(
        "inputs",
        [
            "x ones beta mean ones",  # a scale that is a variance, too
            "x gamma beta zeros ones",  # a scale and a shift, and no statistics
        ],
    )
    def test_is_a_scale_and_shift_where_there_are_no_statistics(self, inputs: str) -> None:
        held = {**STATISTICS, "ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)}
        used = {name: array for name, array in held.items() if name in inputs.split()}
        proto = model((node("BatchNormalization", inputs, "y"),), used)
        module = import_model(from_proto(proto), batch_statistics=True).train()
        assert_like_the_runtime(proto, module, floats(4, 3, 5, 5))
        module(torch.from_numpy(floats(4, 3, 5, 5))).square().mean().backward()
        assert all(each.grad is not None for each in module.parameters())
        assert not {"mean", "zeros"} & set(module.weights)


class TestProgram:
    def test_activations_work_in_place_where_nobody_else_reads(self) -> None:
        """Each activation is fed by a layer: alone, with another reader, and as an output."""
        nodes = [
            node("Conv", "x w", "alone"),
            node("Relu", "alone", "a"),
            node("Conv", "a v", "read_twice"),
            node("Relu", "read_twice", "b"),
            node("Add", "read_twice b", "c"),
            node("Clip", "c zero six", "d"),
            node("Conv", "d v", "given"),
            node("Sigmoid", "given", "e"),
            node("Exp", "e", "f"),
            node("Relu", "f", "y"),
        ]
        tensors = {
            "w": floats(4, 3, 1, 1),
            "v": floats(4, 4, 1, 1),
            "zero": np.float32(0),
            "six": np.float32(6),
        }
        proto = model(nodes, tensors, outputs=("y", "given"))
        module = imported(proto)
        in_place = {
            step.node.split("'")[1]
            for step in module._program.steps
            if isinstance(step, Step) and step.node.startswith(("Relu", "Clip", "Sigmoid"))
            if changes_its_input(step)
        }
        assert in_place == {"a", "d"}
        assert_like_the_runtime(proto, module, floats(2, 3, 4, 4))
        y, given = module(torch.from_numpy(floats(2, 3, 4, 4)))
        (y.mean() + given.mean()).backward()
        assert all(each.grad is not None for each in module.parameters())

    def test_values_inside_can_be_outputs(self) -> None:
        nodes = [node("Conv", "x w", "inside"), node("Relu", "inside", "y")]
        proto = model(nodes, {"w": floats(4, 3, 1, 1)})
        module = imported(proto, outputs=["inside", "y"])
        inside, y = module(torch.from_numpy(floats(1, 3, 4, 4)))
        assert inside.min() < 0  # the activation did not work in its memory
        torch.testing.assert_close(inside.relu(), y)
        with pytest.raises(OptionError, match="no value 'outside'"):
            imported(proto, outputs=["outside"])

    def test_what_outputs_do_not_need_is_left_out(self) -> None:
        nodes = [node("Conv", "x w", "inside"), node("Conv", "inside v", "y")]
        tensors = {"w": floats(4, 3, 1, 1), "v": floats(2, 4, 1, 1)}
        module = imported(model(nodes, tensors), outputs=["inside"])
        assert set(module.weights) == {"w"}

    def test_copies_are_independent(self) -> None:
        module = imported(model([node("MatMul", "x w", "y")], {"w": floats(3, 3)}, x=("n", 3)))
        other = copy.deepcopy(module)
        x = torch.from_numpy(floats(2, 3))
        before = module(x).clone()
        with torch.no_grad():
            other.weights["w"].zero_()
        assert torch.equal(module(x), before)
        assert not other(x).any()
        other.load_state_dict(module.state_dict())
        assert torch.equal(other(x), before)

    def test_branches_see_values_around_them(self) -> None:
        then = helper.make_graph(
            [node("MatMul", "h inner", "t")],
            "then",
            [],
            [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(floats(3, 3), "inner")],
        )
        other = helper.make_graph(
            [node("Neg", "h", "e")],
            "else",
            [],
            [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        )
        nodes = [
            node("MatMul", "x w", "h"),
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Greater", "sum zero", "positive"),
            node("If", "positive", "z", then_branch=then, else_branch=other),
            node("Add", "z h", "y"),
        ]
        proto = model(nodes, {"w": floats(3, 3), "zero": np.float32(0)}, x=("n", 3))
        module = imported(proto)
        assert set(module.weights) == {"w", "inner"}
        x = np.abs(floats(2, 3))
        assert_like_the_runtime(proto, module, x)
        assert_like_the_runtime(proto, module, -x)

    def test_local_functions_run(self) -> None:
        function = helper.make_function(
            "local",
            "Twice",
            ["a"],
            ["b"],
            [node("Add", "a a", "b")],
            [helper.make_opsetid("", 17)],
        )
        call = helper.make_node("Twice", ["h"], ["y"], domain="local")
        proto = model([node("MatMul", "x w", "h"), call], {"w": floats(3, 3)}, x=("n", 3))
        proto.functions.append(function)
        proto.opset_import.append(helper.make_opsetid("local", 1))
        graph = from_proto(proto)
        module = import_model(graph)
        assert_like_the_runtime(proto, module, floats(2, 3))
        assert len(graph.functions) == 1
        with torch.no_grad():
            module.weights["w"].mul_(2)
        assert write_back(module, graph) == ["w"]

    def test_other_sizes_each_time(self) -> None:
        """Sizes computed from sizes: halves of the height, and all of it in one row."""
        nodes = [
            node("Shape", "x", "shape"),
            node("Slice", "shape two three", "height"),
            node("Div", "height divisor", "half"),
            node("Concat", "zero_zero half zero", "starts", axis=0),
            node("Slice", "x starts far axes", "low"),
            node("Slice", "shape zero_1 two", "kept"),
            node("Concat", "kept minus", "target", axis=0),
            node("Reshape", "low target", "y"),
        ]
        tensors = {
            "two": np.array([2]),
            "three": np.array([3]),
            "divisor": np.array([2]),
            "zero_zero": np.array([0, 0]),
            "zero": np.array([0]),
            "far": np.array([2**40] * 4),
            "axes": np.array([0, 1, 2, 3]),
            "zero_1": np.array([0]),
            "minus": np.array([-1]),
        }
        proto = model(nodes, tensors)
        module = imported(proto)
        for shape in ((1, 3, 4, 5), (2, 3, 7, 3)):
            assert_like_the_runtime(proto, module, floats(*shape))


def changes_its_input(step: Step) -> bool:
    x = torch.full((2, 2), -1.5)
    step.function(x)
    return bool((x != -1.5).any())


def test_a_model_file_can_be_given_by_path(tmp_path: pathlib.Path) -> None:
    proto = model([node("MatMul", "x w", "y")], {"w": floats(3, 3)}, x=("n", 3))
    onnx.save(proto, tmp_path / "m.onnx")
    assert_like_the_runtime(proto, import_model(tmp_path / "m.onnx"), floats(2, 3))
