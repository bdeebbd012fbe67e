"""ONNX files give the same logits in every runtime at any size, using operators that all of them support."""

import json
from pathlib import Path

import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto

import ccsegformer
from ccsegformer.export import describe, export
from ccsegformer.export._onnx import quiet_onnxscript
from ccsegformer.ops import criss_cross_attention
from ccsegformer.ops.reference import reference_criss_cross_attention
from tests.export.test_export import CCNET, CLASSES, RECURRENT, TINY, assert_logits_agree, inputs, tiny
from tests.ops.test_explicit import DECOMPOSITION, hide_landmarks, program

EFFICIENT = {**TINY, "attention": "efficient"}
WITHOUT_LEPE = {**TINY, "attention": ("none", "criss_cross"), "lepe": False}


@pytest.fixture(
    scope="module",
    params=[RECURRENT, CCNET, WITHOUT_LEPE, EFFICIENT],
    ids=["recurrent", "ccnet", "without-lepe", "efficient"],
)
def exported(request, tmp_path_factory):
    """Return a model and its ONNX file."""
    model = tiny(**request.param)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    difference = export(model, CLASSES, path, "onnx")
    assert 0 < difference < 1e-5
    return model, path


def test_onnx_runtime_gives_pytorchs_logits(exported):
    model, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"pixel_values": each.numpy()})[0] for each in inputs()]
    assert_logits_agree(model, [torch.from_numpy(each) for each in logits])


def test_openvino_gives_pytorchs_logits(exported):
    model, path = exported
    core, options = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    dynamic = core.compile_model(path, "CPU", options)
    for _ in range(2):  # the second pass goes back to smaller sizes
        logits = [dynamic(each.numpy())["logits"].copy() for each in inputs()]
        assert_logits_agree(model, [torch.from_numpy(each) for each in logits])
    logits = []
    for each in inputs():
        fixed = core.read_model(path)
        fixed.reshape(list(each.shape))
        logits.append(core.compile_model(fixed, "CPU", options)(each.numpy())["logits"])
    assert_logits_agree(model, [torch.from_numpy(each) for each in logits])


def test_the_file_is_valid_and_describes_itself(exported):
    model, path = exported
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    [pixel_values], [logits] = loaded.graph.input, loaded.graph.output
    assert (pixel_values.name, logits.name) == ("pixel_values", "logits")
    axes = pixel_values.type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, "height", "width"]
    described = {each.key: each.value for each in loaded.metadata_props}
    assert described.items() >= describe(model.config, CLASSES).items()
    assert json.loads(described["class_names"]) == ["ground", "water", "road"]
    assert str(Path(ccsegformer.__file__).parent).encode() not in path.read_bytes()


def test_tensorrt_supports_every_operator(exported):
    loaded = onnx.load(exported[1])
    assert {(each.domain, each.version) for each in loaded.opset_import} == {("", 20)}
    inferred = onnx.shape_inference.infer_shapes(loaded, check_type=True, strict_mode=True, data_prop=True)
    graph = inferred.graph
    listing = Path(__file__).with_name("tensorrt_operators.txt").read_text()
    supported = {name for line in listing.splitlines() if line[0] != "#" for name in line.split()}
    assert {node.op_type for node in graph.node} <= supported
    values = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    assert values.keys() >= {name for node in graph.node for name in node.output}
    assert all(value.HasField("shape") for value in values.values())
    types = {value.elem_type for value in values.values()} | {each.data_type for each in graph.initializer}
    assert types <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL}
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        if node.op_type.startswith("Reduce") or node.op_type in ("Squeeze", "Unsqueeze"):
            assert set(node.input[1:]) <= constants, f"{node.op_type} with axes that are not constant"
        if node.op_type == "Resize":
            modes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert (modes["mode"], modes["coordinate_transformation_mode"]) == (b"linear", b"half_pixel")


def test_runtimes_can_fuse_attention(exported):
    # Runtimes fuse a product, a softmax and a product. OpenVINO's kernel needs three dimensions.
    model, path = exported
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    producers = {name: node for node in graph.node for name in node.output}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    passes = {"criss_cross": 2 * model.config.recurrence, "efficient": 1, "none": 0}
    assert len(softmaxes) == sum(passes[attention] for attention in model.config.stage_attention)
    for softmax in softmaxes:
        assert producers[softmax.input[0]].op_type == "MatMul"
        users = [node.op_type for node in graph.node if softmax.output[0] in node.input]
        assert users == ["MatMul"]
    if "efficient" not in model.config.stage_attention:
        assert {ranks[softmax.output[0]] for softmax in softmaxes} == {3}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_scores_far_apart_give_nan_rather_than_wrong_numbers(runtime):
    # If the landmarks underflow, a runtime's exp, log and maximum must propagate the NaN.
    decomposed = program(criss_cross_attention).run_decompositions(DECOMPOSITION)
    with quiet_onnxscript():
        content = torch.onnx.export(decomposed, dynamo=True, opset_version=20, verbose=False).model_proto
    run = load(runtime, content.SerializeToString())
    for depth in (50, 66, *range(68, 74), 80, 88, 95, 104, 200):
        query, key, value = (tensor.float() for tensor in hide_landmarks(depth))
        exact = reference_criss_cross_attention(query.double(), key.double(), value.double(), 0.5)
        ours = torch.from_numpy(run(query.numpy(), key.numpy(), value.numpy())).double()
        is_number = ours.isfinite()
        torch.testing.assert_close(ours[is_number], exact[is_number], atol=3e-5, rtol=0)
        assert is_number.all() if depth < 68 else depth < 73 or not is_number[0, 0, :-1, :-1].any()


def load(runtime, content):
    """Return a function that maps an ONNX file's three inputs to its output."""
    if runtime == "openvino":
        core = openvino.Core()
        model = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda *arrays: model(arrays)[0].copy()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
