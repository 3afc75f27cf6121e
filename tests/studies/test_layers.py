"""Layers as the papers print them."""

import pytest
from torch import nn

from segmod.ground.errors import UserError
from segmod.studies.layers import Layers, layers_of

# Noh, Hong, Han 2015, Table 2: layers, kernel, stride, padding, channels, side; the output's pad 1 is a misprint.
TABLE_2 = """conv1_1 conv1_2 3 1 1 64 224 | pool1 2 2 0 64 112 | conv2_1 conv2_2 3 1 1 128 112 | pool2 2 2 0 128 56
conv3_1 conv3_2 conv3_3 3 1 1 256 56 | pool3 2 2 0 256 28 | conv4_1 conv4_2 conv4_3 3 1 1 512 28 | pool4 2 2 0 512 14
conv5_1 conv5_2 conv5_3 3 1 1 512 14 | pool5 2 2 0 512 7 | fc6 7 1 0 4096 1 | fc7 1 1 0 4096 1
deconv_fc6 7 1 0 512 7 | unpool5 2 2 0 512 14 | deconv5_1 deconv5_2 deconv5_3 3 1 1 512 14
unpool4 2 2 0 512 28 | deconv4_1 deconv4_2 3 1 1 512 28 | deconv4_3 3 1 1 256 28
unpool3 2 2 0 256 56 | deconv3_1 deconv3_2 3 1 1 256 56 | deconv3_3 3 1 1 128 56
unpool2 2 2 0 128 112 | deconv2_1 3 1 1 128 112 | deconv2_2 3 1 1 64 112
unpool1 2 2 0 64 224 | deconv1_1 deconv1_2 3 1 1 64 224 | score 1 1 0 21 224"""


def test_deconvnet_is_that_of_table_2(tmp_path):
    expected = []
    for entry in TABLE_2.replace("\n", "|").split("|"):
        *names, kernel, stride, padding, channels, side = entry.split()
        expected += [(name, kernel, stride, padding, int(channels), f"{side} x {side}") for name in names]
    *rows, total = Layers("deconvnet")({}, tmp_path)
    keys = ("kernel", "stride", "padding", "channels", "output")
    assert [(row["layer"].rpartition(".")[2], *(row[key] for key in keys)) for row in rows] == expected
    assert total["parameters"] == 251_805_653  # the paper's "about 252 M"
    assert sum(row["parameters"] for row in rows) == total["parameters"] - 33_408  # scales and shifts of batch norm


def test_a_layer_that_computes_twice_comes_twice_and_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, (3, 1), padding=(1, 0))
            self.norm = nn.BatchNorm2d(3)
            self.up = nn.Upsample(scale_factor=2)

        def forward(self, image):
            return self.up(self.norm(self.conv(self.conv(image))))

    first, second, up, total = layers_of(Twice(), 8)
    assert (first["kernel"], first["padding"], first["output"]) == ("3 x 1", "1 x 0", "8 x 8")
    assert (first["parameters"], second["parameters"]) == (30, 0)  # 3 * 3 * 3 weights, 3 biases
    assert (up["layer"], up["kernel"], up["output"], total["parameters"]) == ("up", "", "16 x 16", 36)


def test_mistakes_name_their_key(tmp_path):
    with pytest.raises(UserError, match=r"run or study\.model is required"):
        Layers()({}, tmp_path)
    with pytest.raises(UserError, match=r"study\.size=8: the net refuses such images"):
        Layers("hypercolumn_squeezenet", size=8)({}, tmp_path)


def test_the_command_needs_no_run(segmod, tmp_path, capsys):
    assert segmod("study", "study=layers", "study.model=tiny", "study.size=32") == 0
    assert "backbone.features.0" in capsys.readouterr().out
    table = (tmp_path / "studies" / "layers+model-tiny+size-32" / "table.md").read_text()
    assert "| backbone.features.3 | Conv2d | 3 | 2 | 1 | 32 | 16 x 16 | 4608 |" in table  # 16 * 32 * 9
    assert segmod("study", "study=layers", "study.model=huge") == 1
    assert "model=huge: no such option; choose one of" in capsys.readouterr().err
    assert segmod("study", "study=curves") == 1
    assert "run is required" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["layers+model-tiny+size-32"]
