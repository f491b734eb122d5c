"""The road from two files to a third."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.errors import FeedError, ModelError, OptionError
from onnxopt.training.distillation import DistillReport, DistillSettings, distill
from onnxopt.training.settings import TrainingSettings
from tests.differential import parse
from tests.differential import run as run_model
from tests.training import models
from tests.training.test_quantized import quantized_convolution

FAST = DistillSettings(
    training=TrainingSettings(steps=40, batch_size=32, evaluations=4, learning_rate=0.02)
)


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    teacher = models.balanced(models.convolutional())
    found = models.write(tmp_path, teacher=teacher, student=models.noisy(teacher))
    return {**found, "out": tmp_path / "out.onnx"}


def run(paths: dict[str, pathlib.Path], settings: Any = FAST, **options: Any) -> DistillReport:
    return distill(
        paths["teacher"], paths["student"], paths["out"], paths["data"], settings, **options
    )


def agreement(one: pathlib.Path, other: pathlib.Path) -> float:
    feed = {"image": models.random(123, 400, 1, 8, 8)}
    answers = [run_model(onnx.load(path), feed)[0].argmax(axis=1) for path in (one, other)]
    return float((answers[0] == answers[1]).mean())


def test_a_damaged_student_gets_better_on_samples_that_nobody_saw(
    paths: dict[str, pathlib.Path],
) -> None:
    before = agreement(paths["teacher"], paths["student"])
    original = paths["student"].read_bytes()
    report = run(paths)
    after = agreement(paths["teacher"], paths["out"])
    assert after > before + 0.1
    assert paths["student"].read_bytes() == original
    assert report.after.agreement["logits"] > report.before.agreement["logits"]
    assert sorted(report.changed) == ["b1", "b2", "b3", "w1", "w2", "w3"]
    assert report.stacked
    assert json.loads(json.dumps(report.to_dict()))["outputs"][0]["kind"] == "logits"
    assert not list(paths["out"].parent.glob("*.checkpoint"))


def test_graph_names_and_interface_stay(paths: dict[str, pathlib.Path]) -> None:
    run(paths)
    one, other = onnx.load(paths["student"]), onnx.load(paths["out"])
    assert [node.op_type for node in one.graph.node] == [node.op_type for node in other.graph.node]
    assert one.graph.input == other.graph.input
    assert one.graph.output == other.graph.output
    assert {each.name for each in one.graph.initializer} == {
        each.name for each in other.graph.initializer
    }


def test_a_student_that_is_its_teacher_comes_out_byte_by_byte(
    paths: dict[str, pathlib.Path],
) -> None:
    report = distill(paths["teacher"], paths["teacher"], paths["out"], paths["data"], FAST)
    assert paths["out"].read_bytes() == paths["teacher"].read_bytes()
    assert report.changed == []
    assert report.after.agreement == {"logits": 1.0}


def test_zeros_of_the_student_stay(paths: dict[str, pathlib.Path]) -> None:
    model = onnx.load(paths["student"])
    weight = next(each for each in model.graph.initializer if each.name == "w2")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[np.abs(array) < np.median(np.abs(array))] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    onnx.save(model, paths["student"])
    report = run(paths)
    trained = onnx.load(paths["out"]).graph.initializer
    after = onnx.numpy_helper.to_array(next(each for each in trained if each.name == "w2"))
    np.testing.assert_array_equal(after == 0, array == 0)
    assert "w2" in report.changed
    assert report.masked == pytest.approx(0.5, abs=0.01)


def test_labels_are_found_out_to_be_classes(paths: dict[str, pathlib.Path]) -> None:
    report = run(paths, dataclasses.replace(FAST, labels="label"))
    assert report.task is not None
    assert (report.task.output, report.task.kind) == ("logits", "cross-entropy")
    assert report.after.accuracy is not None
    assert report.before.accuracy is not None
    assert report.after.accuracy > report.before.accuracy


def test_hints_lead_inner_tensors_of_another_width(tmp_path: pathlib.Path) -> None:
    paths = models.write(
        tmp_path, teacher=models.convolutional(), student=models.convolutional(4, seed=3)
    )
    paths["out"] = tmp_path / "out.onnx"
    settings = dataclasses.replace(FAST, hints={"r": "r", "s": "s"})
    report = run(paths, settings)
    kinds = {plan.name: plan.is_hint for plan in report.outputs}
    assert kinds == {"logits": False, "r": True, "s": True}
    assert report.training.best.score.loss < report.training.before.score.loss
    assert [value.name for value in onnx.load(paths["out"]).graph.output] == ["logits"]


def test_labels_tell_logits_that_do_not_look_like_it(tmp_path: pathlib.Path) -> None:
    teacher = models.convolutional()  # the same answer for nearly every image
    paths = models.write(tmp_path, teacher=teacher, student=models.noisy(teacher))
    paths["out"] = tmp_path / "out.onnx"
    assert run(paths).outputs[0].kind == "numbers"
    report = run(paths, dataclasses.replace(FAST, labels="label"))
    assert report.outputs[0].kind == "logits"
    assert "labels are classes" in report.outputs[0].reason


def test_a_loss_of_the_users_own(paths: dict[str, pathlib.Path]) -> None:
    seen = []

    def own(outputs: Any, labels: Any) -> Any:
        seen.append(labels.shape)
        return -outputs["logits"].gather(1, labels[:, None]).mean()

    run(paths, dataclasses.replace(FAST, labels="label"), task_loss=own)
    assert (32,) in seen


def test_a_group_lasso_empties_channels_as_a_whole(paths: dict[str, pathlib.Path]) -> None:
    loop = dataclasses.replace(FAST.training, steps=150, learning_rate=0.05, patience=0)
    sizes = {}
    for strength in (0.0, 0.02):
        settings = dataclasses.replace(
            FAST, training=loop, penalty="group-lasso", penalty_strength=strength
        )
        run(paths, settings)
        weight = next(
            each for each in onnx.load(paths["out"]).graph.initializer if each.name == "w2"
        )
        lengths = np.linalg.norm(onnx.numpy_helper.to_array(weight).reshape(8, -1), axis=1)
        sizes[strength] = lengths.min() / lengths.max()
    assert sizes[0.02] < 0.7 * sizes[0.0]


@pytest.mark.parametrize("learn_scales", [False, True])
def test_a_quantized_student_stays_on_its_grid(tmp_path: pathlib.Path, learn_scales: bool) -> None:
    teacher, student = quantized_convolution(), quantized_convolution()
    names = {"w": "w", "w_scale": "w_scale", "x_scale": "x_scale"}
    for tensor in student.graph.initializer:
        if tensor.name in ("head", "w_scale"):
            array = onnx.numpy_helper.to_array(tensor)
            moved = array * models.random(3, *array.shape, scale=0.2).clip(-0.4, 0.4) + array
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    paths = {"teacher": tmp_path / "t.onnx", "student": tmp_path / "s.onnx"}
    paths |= {"out": tmp_path / "out.onnx", "data": tmp_path / "data.npz"}
    onnx.save(teacher, paths["teacher"])
    onnx.save(student, paths["student"])
    np.savez(paths["data"], x=models.random(5, 100, 3, 6, 6))
    settings = dataclasses.replace(FAST, learn_scales=learn_scales)
    report = run(paths, settings)
    assert report.training.best.score.loss < report.training.before.score.loss / 2
    trained = {each.name: each for each in onnx.load(paths["out"]).graph.initializer}
    original = {each.name: each for each in student.graph.initializer}
    changed = {
        name
        for name in names
        if trained[name].SerializeToString() != original[name].SerializeToString()
    }
    assert trained["w"].data_type == onnx.TensorProto.INT8
    assert changed >= ({"w_scale", "x_scale"} if learn_scales else set())
    assert ("w_scale" in changed) == learn_scales
    scales = onnx.numpy_helper.to_array(trained["w_scale"])
    assert (scales > 0).all()


def test_scales_where_there_are_none(paths: dict[str, pathlib.Path]) -> None:
    with pytest.raises(OptionError, match="no quantizers whose scales"):
        run(paths, dataclasses.replace(FAST, learn_scales=True))


# Bad input


def test_labels_out_of_range(paths: dict[str, pathlib.Path]) -> None:
    labels = np.zeros(300, np.int64)
    labels[41] = 5
    np.savez(paths["data"], image=models.images(), label=labels)
    with pytest.raises(FeedError, match=r"label 5 of sample 41 is out of range.*0 to 4"):
        run(paths, dataclasses.replace(FAST, labels="label"))
    assert not paths["out"].exists()


def test_labels_out_of_range_of_what_may_be_classes(tmp_path: pathlib.Path) -> None:
    teacher = models.convolutional()  # its logits do not look like it
    paths = models.write(tmp_path, teacher=teacher, student=models.noisy(teacher))
    paths["out"] = tmp_path / "out.onnx"
    labels = np.full(300, 7, np.int64)
    np.savez(paths["data"], image=models.images(), label=labels)
    with pytest.raises(FeedError, match=r"label 7 is out of range if 'logits' .*, from 0 to 4"):
        run(paths, dataclasses.replace(FAST, labels="label"))
    assert not paths["out"].exists()


def test_nan_in_all_samples(paths: dict[str, pathlib.Path]) -> None:
    np.savez(paths["data"], image=np.full_like(models.images(), np.nan))
    with pytest.raises(FeedError, match="input 'image' holds NaN or infinity"):
        run(paths)
    assert not paths["out"].exists()


def test_fewer_labels_than_samples(paths: dict[str, pathlib.Path]) -> None:
    np.savez(paths["data"], image=models.images(), label=np.zeros(7, np.int64))
    with pytest.raises(FeedError, match="7 labels 'label' for 300 samples"):
        run(paths, dataclasses.replace(FAST, labels="label"))


def test_labels_of_another_name(paths: dict[str, pathlib.Path]) -> None:
    with pytest.raises(FeedError, match="no array 'lable' of labels; is it 'label'"):
        run(paths, dataclasses.replace(FAST, labels="lable"))


def test_labels_that_fit_no_output(paths: dict[str, pathlib.Path]) -> None:
    np.savez(paths["data"], image=models.images(), label=models.random(0, 300, 3))
    with pytest.raises(FeedError, match=r"labels of type float32 and shape .* fit no output"):
        run(paths, dataclasses.replace(FAST, labels="label"))


def test_other_outputs(paths: dict[str, pathlib.Path]) -> None:
    text = "g (float[n, 1, 8, 8] image) => (float[n, 64] features) { features = Flatten(image) }"
    onnx.save(parse(text), paths["student"])
    with pytest.raises(ModelError, match=r"other outputs: logits of .* features of"):
        run(paths)


def test_other_inputs(paths: dict[str, pathlib.Path]) -> None:
    text = """g (float[n, 1, 8, 8] picture) => (float[n, 64] logits) {
        logits = Flatten(picture) }"""
    onnx.save(parse(text), paths["student"])
    with pytest.raises(ModelError, match=r"other inputs: image of .* picture of"):
        run(paths)


def test_outputs_of_another_shape(paths: dict[str, pathlib.Path]) -> None:
    model = models.convolutional(w3=models.random(0, 8, 9), b3=models.random(1, 9))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    onnx.save(model, paths["student"])
    with pytest.raises(ModelError, match=r"output 'logits' has shape \[1, 5\] from .*\[1, 9\]"):
        run(paths)


def test_no_data(paths: dict[str, pathlib.Path]) -> None:
    np.savez(paths["data"], image=np.zeros((0, 1, 8, 8), np.float32))
    with pytest.raises(FeedError, match="holds no samples"):
        run(paths)
    paths["data"].unlink()
    with pytest.raises(FeedError, match="does not exist"):
        run(paths)


def test_a_hint_that_is_not_there(paths: dict[str, pathlib.Path]) -> None:
    with pytest.raises(ModelError, match="computes no tensor 'rr'"):
        run(paths, dataclasses.replace(FAST, hints={"rr": "r"}))


def test_a_kind_for_an_output_that_is_not_there(paths: dict[str, pathlib.Path]) -> None:
    with pytest.raises(OptionError, match=r"'logit'.*is it 'logits'"):
        run(paths, dataclasses.replace(FAST, kinds={"logit": "logits"}))


def test_the_output_is_not_an_input(paths: dict[str, pathlib.Path]) -> None:
    paths["out"] = paths["student"]
    with pytest.raises(ModelError, match="is an input itself"):
        run(paths)


def test_nan_in_the_samples_keeps_what_there_is(paths: dict[str, pathlib.Path]) -> None:
    inputs = models.images()
    inputs[100:103] = np.nan
    np.savez(paths["data"], image=inputs)
    report = run(paths)
    assert report.training.failed
    assert any("input 'image' holds NaN" in note for note in report.notes)
    assert paths["out"].exists()


def test_the_report_tells_which_learning_rates_were_tried(paths: dict[str, pathlib.Path]) -> None:
    loop = TrainingSettings(steps=120, batch_size=32, evaluations=4)
    report = run(paths, dataclasses.replace(FAST, training=loop))
    note = next(each for each in report.notes if "chosen by trials of" in each)
    assert f"The learning rate {report.training.peak_learning_rate:g} was" in note
    assert all(f"with {each.rate:g}" in note for each in report.training.rate_trials)
    trials = json.loads(json.dumps(report.to_dict()))["training"]["rate_trials"]
    assert len(trials) >= 3
    assert report.after.is_better_than(report.before)


_INTEGER = """g (float[n, 4] x) => (float[n, 3] y) {
    q = QuantizeLinear(x, s, z)
    i = MatMulInteger(q, w, z)
    f = Cast<to=1>(i)
    y = LAST
}"""


@pytest.mark.parametrize("trains", [True, False])
def test_integer_products_are_named(tmp_path: pathlib.Path, trains: bool) -> None:
    weights: dict[str, Any] = {
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "w": np.random.default_rng(0).integers(-90, 90, (4, 3)).astype(np.int8),
    }
    if trains:
        weights["head"] = models.random(0, 3, 3, scale=0.001)
    last = "MatMul(f, head)" if trains else "Relu(f)"
    proto = parse(_INTEGER.replace("LAST", last), weights)
    onnx.save(proto, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=models.random(0, 60, 4))
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    text = "weights of 1 products of integers stay as they are, such as MatMulInteger 'i'"
    if trains:
        assert f"The {text}." in distill(model, model, None, data, FAST).notes
    else:
        with pytest.raises(ModelError, match=f"nothing to train: the {text}"):
            distill(model, model, None, data, FAST)
