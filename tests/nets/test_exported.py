"""Exported files read back, and what strangers may put into them."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_CLASSES, Legend
from segmod.nets.exported import FACTS, OnnxNet, read_facts

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

K = 3
WEIGHT = torch.randn(K, 3, 1, 1, generator=torch.Generator().manual_seed(0))


def facts(**other: Any) -> dict[str, Any]:
    legend = Legend("synthetic", VOC_CLASSES[:K]).as_plain()
    return {**legend, "run": "x", "output": "logits", "size": None, "least": 8, "metrics": {}, "config": {}} | other


def model(output: str = "logits", **other: Any) -> Any:
    """A 1x1 convolution of the image, as logits, probabilities or labels."""
    helper, types = onnx.helper, onnx.TensorProto
    weight = helper.make_tensor("weight", types.FLOAT, WEIGHT.shape, WEIGHT.flatten().tolist())
    last = {
        "logits": ("Identity", {}),
        "probabilities": ("Softmax", {"axis": 1}),
        "labels": ("ArgMax", {"axis": 1, "keepdims": 0}),
    }
    kind, arguments = last[output]
    nodes = [
        helper.make_node("Cast", ["image"], ["floating"], to=types.FLOAT),
        helper.make_node("Conv", ["floating", "weight"], ["scores"]),
        helper.make_node(kind, ["scores"], ["given"], **arguments),
    ]
    axes = ["b", "h", "w"] if output == "labels" else ["b", K, "h", "w"]
    taken = helper.make_tensor_value_info("image", types.UINT8, ["b", 3, "h", "w"])
    given = helper.make_tensor_value_info("given", types.INT64 if output == "labels" else types.FLOAT, axes)
    made = helper.make_model(helper.make_graph(nodes, "net", [taken], [given], [weight]), ir_version=10)
    made.opset_import[0].version = 18
    helper.set_model_props(made, {k: json.dumps(v) for k, v in ({**facts(output=output), **other}).items()})
    return made


def saved(path: Path, made: Any) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def opened(path: Path) -> OnnxNet:
    return OnnxNet(path, read_facts(path))


IMAGE = torch.randint(256, (2, 3, 9, 11), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
def test_the_softmax_of_what_it_gives_is_what_the_file_says(output: str, tmp_path: Path) -> None:
    net = opened(saved(tmp_path / "x.onnx", model(output)))
    assert net.num_classes == K
    logits = F.conv2d(IMAGE.float(), WEIGHT)
    expected = F.one_hot(logits.argmax(1), K).movedim(-1, 1).float() if output == "labels" else logits.softmax(1)
    for image in (IMAGE, IMAGE.float(), IMAGE + 0.3):  # rounded to bytes
        torch.testing.assert_close(net(image).softmax(1), expected, atol=1e-5, rtol=1e-5)
    if output == "logits":
        torch.testing.assert_close(net(IMAGE), logits)


def test_sizes_that_a_file_does_not_take_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.onnx takes images from 10 pixels a side, not 9 x 11"):
        opened(saved(tmp_path / "x.onnx", model(least=10)))(IMAGE)
    with pytest.raises(UserError, match=r"x.onnx takes images of 9 x 12 alone, not 9 x 11: .* inference.size=N"):
        opened(saved(tmp_path / "x.onnx", model(size=[9, 12])))(IMAGE)


def test_a_file_that_gives_something_else_is_told(tmp_path: Path) -> None:
    classes = Legend("synthetic", VOC_CLASSES[:2]).as_plain()
    with pytest.raises(UserError, match=r"gives \(2, 3, 9, 11\) where \(2, 2, 9, 11\) belongs"):
        opened(saved(tmp_path / "x.onnx", model(**classes)))(IMAGE)
    with pytest.raises(UserError, match=r"gives \(2, 9, 11\) where"):
        opened(saved(tmp_path / "x.onnx", model("labels", **classes)))(IMAGE)


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    content = model().SerializeToString()
    path = tmp_path / "x.onnx"
    for cut in (0, 1, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"x.onnx: no whole file of segmod-export") as error:
            read_facts(path)
        assert len(str(error.value)) < 300
        assert "\n" not in str(error.value)
    for wrong in ({"classes": "dog"}, {"palette": []}, {"size": [3]}, {"least": None}, {"config": []}):
        with pytest.raises(UserError, match=r"no whole file of segmod-export"):
            read_facts(saved(path, model(**wrong)))
    with pytest.raises(UserError, match=r"more than \d+ characters"):
        read_facts(saved(path, model(run="x" * 2**20)))
    with pytest.raises(UserError, match=r"x.pt2: no whole file of segmod-export"):
        read_facts(saved(tmp_path / "x.pt2", model()))


def test_no_other_file_is_read_for_one(tmp_path: Path) -> None:
    made = model()
    tensor = made.graph.initializer[0]
    (tmp_path / "elsewhere").write_bytes(WEIGHT.numpy().tobytes())
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere")
    nested = model()
    attribute = onnx.helper.make_attribute("value", tensor)
    nested.graph.node.append(onnx.helper.make_node("Constant", [], ["more"]))
    nested.graph.node[-1].attribute.append(attribute)
    for one in (made, nested):
        with pytest.raises(UserError, match=r"x.onnx has weights in other files"):
            read_facts(saved(tmp_path / "x.onnx", one))


def test_facts_of_a_program_are_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"x/extra/{FACTS}", json.dumps(facts()))
        archive.writestr("x/data/weights/bomb.pt", b"cos\nsystem\n(S'false'\ntR.")
    assert read_facts(path)["classes"] == list(VOC_CLASSES[:K])
