"""Folders of images and masks as people keep them: what is understood, and the line where something is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from pycocotools import mask as runs

from segmod.data.base import Split
from segmod.data.coco import CocoFolder
from segmod.data.folder import ImageFolder, held_out, open_folder
from segmod.data.transforms import EvalTransform
from segmod.ground.errors import UserError
from segmod.runs.cli import CONF_DIR
from segmod.runs.folders import register_resolvers
from segmod.runs.instantiate import instantiate

CLASSES = ("background", "cat", "dog")
COLOURS = [(0, 0, 0), (200, 10, 30), (7, 8, 9)]
LABELS = np.array([[0, 1, 1, 2], [0, 1, 255, 2], [0, 0, 0, 0]], dtype=np.uint8)  # 3 high, 4 wide


def save_image(path: Path, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100 if mode in ("L", "I;16") else None).save(path)


def save_mask(path: Path, labels: np.ndarray = LABELS, form: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "rgb":
        table = np.zeros((256, 3), np.uint8)
        table[: len(COLOURS)], table[255] = COLOURS, (224, 224, 192)
        Image.fromarray(table[labels]).save(path)
    elif form == "P":
        mask = Image.fromarray(labels, mode="P")
        mask.putpalette([c for colour in COLOURS for c in colour] + [0] * 759)
        mask.save(path)
    elif form == "16":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    else:
        Image.fromarray(labels).save(path)


def fill(root: Path, images: str = "images/{}", masks: str = "masks/{}", names: str = "ab", form: str = "L") -> Path:
    """Images and masks by these patterns, and classes.txt."""
    for name in names:
        save_image(root / (images.format(name) + ".jpg"))
        save_mask(root / (masks.format(name) + ".png"), form=form)
    lines = [f"{name} {r} {g} {b}" if form == "rgb" else name for name, (r, g, b) in zip(CLASSES, COLOURS, strict=True)]
    (root / "classes.txt").write_text("\n".join(lines) + "\n")
    return root


def sample(data: Any, split: str = "all", index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return Split(data, split, EvalTransform()).read(index)


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{split}/{{}}", "masks/{split}/{{}}"),
        ("JPEGImages/{split}/{{}}", "SegmentationClass/{split}/{{}}"),
        ("{split}/images/{{}}", "{split}/labels/{{}}"),
        ("{split}/img/{{}}", "{split}/gt/{{}}"),
        ("{split}/{{}}", "{split}annot/{{}}"),
    ],
)
@pytest.mark.parametrize("spelt", ["val", "valid", "validation"])
def test_folders_of_splits(tmp_path: Path, images: str, masks: str, spelt: str) -> None:
    for split, names in (("train", "abc"), (spelt, "xy")):
        fill(tmp_path, images.format(split=split), masks.format(split=split), names)
    data = ImageFolder(tmp_path)
    assert (data.names("train"), data.names("val")) == (["a", "b", "c"], ["x", "y"])
    assert data.name == tmp_path.name
    assert data.legend.classes == CLASSES
    image, mask = sample(data, "val")
    assert image.shape == (3, 4, 3)
    np.testing.assert_array_equal(mask, LABELS)


def test_names_hold_the_folders_below(tmp_path: Path) -> None:
    fill(tmp_path, "images/train/city 1/{}", "masks/train/city 1/{}")
    assert ImageFolder(tmp_path).names("train") == ["city 1/a", "city 1/b"]


@pytest.mark.parametrize("place", ["", "splits/", "lists/", "ImageSets/Segmentation/"])
@pytest.mark.parametrize("line", ["{}", "{}.jpg", "images/{}.jpg masks/{}.png", "/data/images/{}.jpg"])
def test_lists_of_names_or_paths(tmp_path: Path, place: str, line: str) -> None:
    fill(tmp_path, names="abc")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "train.txt").write_text(line.replace("{}", "c") + "\n\n" + line.replace("{}", "a") + "\n")
    (tmp_path / place / "val.txt").write_text("b")
    data = ImageFolder(tmp_path)
    assert (data.names("train"), data.names("val")) == (["c", "a"], ["b"])


def test_without_lists_a_hash_of_the_name_splits_and_what_is_added_moves_nothing(tmp_path: Path) -> None:
    names = [f"image {k}" for k in range(400)]
    ours = held_out(names, 0.2)
    assert 50 < len(ours) < 110  # 80 expected, 8 the standard deviation
    assert held_out(names[:100], 0.2) == ours & set(names[:100])
    assert len(held_out(["a"], 0.01)) == 1
    fill(tmp_path, names="abcdefghij")
    data = ImageFolder(tmp_path, val_fraction=0.3)
    train, val = data.names("train"), data.names("val")
    assert sorted(train + val) == list("abcdefghij") == data.names("all")
    assert set(val) == held_out(list("abcdefghij"), 0.3)


def test_patterns_of_ones_own(tmp_path: Path) -> None:
    fill(tmp_path, "leftImg8bit/val/ulm/{}_left", "gtFine/val/ulm/{}_gt_ids")
    data = ImageFolder(tmp_path, images="leftImg8bit/{split}/{name}_left.jpg", masks="gtFine/{split}/{name}_gt_ids.png")
    assert data.names("val") == ["ulm/a", "ulm/b"]
    assert data.files("val", "ulm/a")[1].name == "a_gt_ids.png"


@pytest.mark.parametrize("kind", ["jpg", "jpeg", "png", "webp", "tif", "bmp", "JPG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_of_any_kind(tmp_path: Path, kind: str, mode: str) -> None:
    fill(tmp_path, names="a")
    (tmp_path / "images" / "a.jpg").unlink()
    save_image(tmp_path / "images" / f"a.{kind}", mode=mode)
    assert sample(ImageFolder(tmp_path))[0].shape == (3, 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "P", "1"])
def test_pngs_of_any_mode(tmp_path: Path, mode: str) -> None:
    fill(tmp_path, names="a")
    (tmp_path / "images" / "a.jpg").unlink()
    save_image(tmp_path / "images" / "a.png", mode=mode)
    assert sample(ImageFolder(tmp_path))[0].shape == (3, 4, 3)


def test_a_photograph_is_turned_as_its_tag_says_unless_its_mask_is_not(tmp_path: Path) -> None:
    fill(tmp_path, names="a")
    turned = Image.Exif()
    turned[0x0112] = 6  # by 90 degrees
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "a.jpg", exif=turned)
    assert sample(ImageFolder(tmp_path))[0].shape == (3, 4, 3)  # the mask is 3 high, as stored
    save_mask(tmp_path / "masks" / "a.png", LABELS.T.copy())
    assert sample(ImageFolder(tmp_path))[0].shape == (4, 3, 3)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["L", "P", "16", "rgb"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_masks_of_any_form_say_the_same(tmp_path: Path, form: str, kind: str) -> None:
    fill(tmp_path, names="a", form=form)
    (tmp_path / "masks" / "a.png").unlink()
    save_mask(tmp_path / "masks" / f"a.{kind}", form=form)
    np.testing.assert_array_equal(sample(ImageFolder(tmp_path))[1], LABELS)


def test_a_palette_of_class_colours_counts_whatever_the_indices(tmp_path: Path) -> None:
    fill(tmp_path, names="a", form="rgb")
    mask = Image.fromarray(np.array([[5, 6, 7, 5]] * 3, dtype=np.uint8), mode="P")
    mask.putpalette([9] * 15 + [c for colour in reversed(COLOURS) for c in colour] + [0] * 744)
    mask.save(tmp_path / "masks" / "a.png")
    np.testing.assert_array_equal(sample(ImageFolder(tmp_path))[1][0], [2, 1, 0, 2])


def test_stored_values_of_ones_own(tmp_path: Path) -> None:
    fill(tmp_path, names="a")
    save_mask(tmp_path / "masks" / "a.png", np.array([[7, 8, 300, 0]] * 3), form="16")
    data = ImageFolder(tmp_path, labels=[8, 7, 300], void=[0])
    np.testing.assert_array_equal(sample(data)[1][0], [1, 0, 2, 255])
    save_mask(tmp_path / "masks" / "a.png", np.array([[7, 8, 60000, 0]] * 3), form="16")
    np.testing.assert_array_equal(
        sample(ImageFolder(tmp_path, labels=[8, 7, 300], void="rest"))[1][0], [1, 0, 255, 255]
    )


def test_masks_of_0_and_255_of_two_classes(tmp_path: Path) -> None:
    fill(tmp_path, names="a")
    save_mask(tmp_path / "masks" / "a.png", np.array([[0, 255, 0, 255]] * 3, dtype=np.uint8))
    data = ImageFolder(tmp_path, classes=["background", "leaf"], labels=[0, 255])
    np.testing.assert_array_equal(sample(data)[1][0], [0, 1, 0, 1])


def test_a_grey_mask_stored_as_rgb_holds_indices(tmp_path: Path) -> None:
    fill(tmp_path, names="a")
    Image.fromarray(np.repeat(LABELS[..., None], 3, axis=2)).save(tmp_path / "masks" / "a.png")
    np.testing.assert_array_equal(sample(ImageFolder(tmp_path))[1], LABELS)


def test_void_may_be_colours(tmp_path: Path) -> None:
    fill(tmp_path, names="a", form="rgb")
    pixels = np.zeros((3, 4, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = (1, 1, 1), (200, 10, 30)
    Image.fromarray(pixels).save(tmp_path / "masks" / "a.png")
    np.testing.assert_array_equal(sample(ImageFolder(tmp_path, void=[[1, 1, 1]]))[1][0], [255, 1, 0, 0])
    np.testing.assert_array_equal(sample(ImageFolder(tmp_path, void="rest"))[1][0], [255, 1, 0, 0])


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "coloured"),
    [
        ("classes.txt", "background\ncat\ndog\n", False),
        ("labels.txt", "# mine\nbackground\n\ncat\ndog", False),
        ("classes.txt", "\ufeffbackground\r\ncat\r\ndog\r\n", False),
        ("classes.txt", "background 0 0 0\ncat 200 10 30\ndog 7 8 9", True),
        ("label_colors.txt", "0 0 0\tbackground\n200 10 30\tcat\n7 8 9\tdog", True),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncat,200,10,30\ndog,7,8,9", True),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:200,10,30::\ndog:7,8,9::", True),
        ("classes.yaml", "[background, cat, dog]", False),
        ("classes.yaml", "names: {0: background, 1: cat, 2: dog}", False),
        ("classes.yml", "background: [0, 0, 0]\ncat: [200, 10, 30]\ndog: [7, 8, 9]", True),
    ],
)
def test_files_of_classes(tmp_path: Path, file: str, text: str, coloured: bool) -> None:
    fill(tmp_path, form="rgb" if coloured else "L")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / file).write_text(text, encoding="utf-8")
    data = ImageFolder(tmp_path)
    assert tuple(data.classes) == CLASSES
    if coloured:
        assert data.palette[:3].tolist() == [list(colour) for colour in COLOURS]
    np.testing.assert_array_equal(sample(data)[1], LABELS)
    assert tuple(ImageFolder(tmp_path, classes=file).classes) == CLASSES


def test_classes_from_the_command_line(tmp_path: Path) -> None:
    fill(tmp_path, form="rgb")
    (tmp_path / "classes.txt").unlink()
    assert ImageFolder(tmp_path, classes=3).classes == ("class 0", "class 1", "class 2")
    named = dict(zip(CLASSES, COLOURS, strict=True))
    for data in (ImageFolder(tmp_path, classes=named), ImageFolder(tmp_path, classes=CLASSES, colours=COLOURS)):
        np.testing.assert_array_equal(sample(data)[1], LABELS)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def write(path: str, text: str | bytes) -> Any:
    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def remove(path: str) -> Any:
    return lambda root: (root / path).unlink()


def redraw(labels: Any, form: str = "L") -> Any:
    kind = np.uint16 if form == "16" else np.uint8
    return lambda root: save_mask(root / "masks" / "a.png", np.array(labels, dtype=kind), form=form)


RGB = np.full((3, 4, 3), (200, 10, 30), np.uint8)


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (remove("classes.txt"), {}, r"classes\.txt: no such file.*data\.dataset\.classes="),
        (write("classes.txt", ""), {}, r"classes\.txt: give two or more different names"),
        (write("classes.txt", "one"), {}, r"classes\.txt: give two or more"),
        (write("classes.txt", "a\na\nb"), {}, r"classes\.txt: give two or more different"),
        (write("classes.txt", "a 1 2 3\nb"), {}, r"'a 1 2 3' has a colour and 'b' has none"),
        (write("classes.txt", "a 1 2 3\nb 1 2 3\nc 0 0 0"), {}, r"the colour of a is that of another class"),
        (write("classes.txt", "a 1 2 3\na 1 2 4"), {}, r"give two or more different names"),
        (write("classes.txt", b"\xff\xfea\x00"), {}, r"classes\.txt: cannot be read as UTF-8"),
        (None, {"classes": "nowhere.txt"}, r"data\.dataset\.classes=nowhere\.txt: there is no file"),
        (write("c.yaml", "{"), {"classes": "c.yaml"}, r"c\.yaml: is no yaml"),
        (write("c.yaml", "3"), {"classes": "c.yaml"}, r"c\.yaml: give two or more"),
        (write("c.yaml", "{a: [1, 2], b: [0, 0, 0]}"), {"classes": "c.yaml"}, r"the colour of a is \[1, 2\]"),
        (None, {"classes": 1}, r"classes=1: 2 to 255"),
        (None, {"classes": 300}, r"classes=300: 2 to 255"),
        (None, {"classes": True}, r"classes=True: give names"),
        (None, {"classes": {"a": [0, 0, 256], "b": [1, 1, 1]}}, r"the colour of a is \[0, 0, 256\]"),
        (None, {"colours": [[0, 0, 0]]}, r"data\.dataset\.colours: give 3 different colours"),
        (None, {"colours": [[0, 0, 0]] * 3}, r"data\.dataset\.colours: give 3 different colours"),
        (None, {"colours": [[0, 0, 999], [1, 1, 1], [2, 2, 2]]}, r"data\.dataset\.colours"),
        (None, {"labels": [0, 1]}, r"data\.dataset\.labels: give 3 different values"),
        (None, {"labels": [0, 1, 1]}, r"data\.dataset\.labels: give 3 different values"),
        (None, {"labels": [0, 1, -1]}, r"data\.dataset\.labels: give 3 different values"),
        (None, {"labels": [0, 1, 70000]}, r"data\.dataset\.labels: give 3 different values"),
        (None, {"void": "all"}, r"data\.dataset\.void=all: give a list, or rest"),
        (None, {"void": [-1]}, r"data\.dataset\.void"),
        (None, {"void": [[1, 2]]}, r"data\.dataset\.void"),
        (None, {"val_fraction": 0}, r"data\.dataset\.val_fraction=0"),
        (None, {"val_fraction": 1.0}, r"data\.dataset\.val_fraction=1"),
        (None, {"images": "images/{name}"}, r"data\.dataset\.(images|masks)=.*give both patterns"),
        (None, {"images": "images", "masks": "masks/{name}"}, r"data\.dataset\.images=images: give both patterns"),
        (None, {"images": "im/{name}", "masks": "masks/{name}"}, r"im: no such folder"),
        (remove("masks/a.png"), {}, r"images/a\.jpg: has no mask; expected .*masks/a"),
        (lambda r: [remove("masks/a.png")(r), remove("masks/b.png")(r)], {}, r"has no mask and 1 more"),
        (lambda r: save_image(r / "images/a.png"), {}, r"images/a\.png: .*a\.jpg has the same name"),
        (lambda r: save_mask(r / "masks/a.tif"), {}, r"masks/a\.tif: .*a\.png has the same name"),
        (
            lambda r: (r / "images").rename(r / "fotos"),
            {},
            r"no images and masks of split all .*data\.dataset\.images=PATTERN",
        ),
        (
            redraw([[0, 1, 2, 3]] * 3),
            {},
            r"masks/a\.png: holds 3, which no class has: the 3 classes are stored as 0\.\.2",
        ),
        (redraw([[9, 1, 2, 3]] * 3), {"labels": [1, 2, 3]}, r"holds 9, which no class has.*stored as 1, 2, 3"),
        (redraw([[0, 60000, 2, 1]] * 3, "16"), {}, r"which no class has"),
        (redraw([[0, 1, 2]] * 3), {}, r"masks/a\.png: the mask is 3x3 pixels but its image .*a\.jpg is 4x3"),
        (
            lambda r: Image.fromarray(RGB).save(r / "masks/a.png"),
            {},
            r"the mask is in colours \(\(200, 10, 30\)\): say",
        ),
        (
            lambda r: Image.fromarray(RGB).save(r / "masks/a.png"),
            {"colours": [[0, 0, 0], [1, 2, 3], [4, 5, 6]]},
            r"holds the colours \(200, 10, 30\), which no class has",
        ),
        (write("masks/a.png", b"no picture"), {}, r"masks/a\.png: the mask is damaged"),
        (write("masks/a.png", b""), {}, r"masks/a\.png: the mask is damaged"),
        (write("images/a.jpg", b"no picture"), {}, r"images/a\.jpg: the image is damaged"),
        (write("images/a.jpg", b""), {}, r"images/a\.jpg: the image is damaged"),
        (lambda r: [p.unlink() for p in (r / "images").iterdir()], {}, r"split all has no images"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, change: Any, keys: dict[str, Any], message: str) -> None:
    fill(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        sample(open_folder(tmp_path, **keys))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 300


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("test", None, r"no list test\.txt; choose train, val or all"),
        ("test", write("train.txt", "a"), r"no list test\.txt; there are train\.txt"),
        ("val", write("train.txt", "a"), r"no list val\.txt; there are train\.txt"),
        ("train", write("train.txt", "a\nz"), r"train\.txt, line 2: there is no image z"),
        ("train", write("train.txt", b"\xff\x00"), r"train\.txt: cannot be read as UTF-8"),
        ("train", write("train.txt", ""), r"split train has no images"),
        (
            "test",
            lambda r: fill(r / "images" / "train", "{}", "../../masks/train/{}"),
            r"split test \(there are train\)",
        ),
    ],
)
def test_a_split_that_is_not_there(tmp_path: Path, split: str, change: Any, message: str) -> None:
    fill(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path).names(split)


def test_no_folder(tmp_path: Path) -> None:
    for root in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"data\.root=.*: no such folder"):
            open_folder(root)


# -- COCO --------------------------------------------------------------------------------------------------------------


def polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def coco(names: str = "ab", **changes: Any) -> dict[str, Any]:
    """A dog of 2 x 2 pixels over a cat of 4 x 2, in each image of 4 x 3."""
    content: dict[str, Any] = {
        "images": [{"id": 10 + k, "file_name": f"{name}.jpg", "height": 3, "width": 4} for k, name in enumerate(names)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [],
    }
    for k in range(len(names)):
        cat = np.zeros((3, 4), dtype=np.uint8, order="F")
        cat[:2] = 1
        run = runs.encode(cat)
        run["counts"] = run["counts"].decode()
        content["annotations"] += [
            {"id": 2 * k, "image_id": 10 + k, "category_id": 7, "segmentation": [polygon(0, 0, 2, 2)], "iscrowd": 0},
            {"id": 2 * k + 1, "image_id": 10 + k, "category_id": 3, "segmentation": run, "iscrowd": 0},
        ]
    return {**content, **changes}


DRAWN = [[2, 2, 1, 1], [2, 2, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("json_place", "images"),
    [
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
        ("{}.json", "images"),
    ],
)
def test_coco_in_its_usual_places(tmp_path: Path, json_place: str, images: str) -> None:
    for split, names in (("train", "ab"), ("valid", "xyz")):
        for name in names:
            save_image(tmp_path / images.format(split) / f"{name}.jpg")
        write(json_place.format(split), json.dumps(coco(names)))(tmp_path)
    data = open_folder(tmp_path)
    assert isinstance(data, CocoFolder)
    assert tuple(data.classes) == CLASSES  # in the order of their ids, background first
    assert (data.names("train"), data.names("val")) == (["a", "b"], ["x", "y", "z"])
    image, mask = sample(data, "val")
    assert image.shape == (3, 4, 3)
    np.testing.assert_array_equal(mask, DRAWN)  # the smaller on top
    objects = data.read_objects("val", "x")
    assert objects is not None
    assert objects.tolist() == [[2, 2, 1, 1], [2, 2, 1, 1], [0] * 4]


def test_one_json_of_all_images_is_split_by_their_names(tmp_path: Path) -> None:
    names = "abcdefghij"
    for name in names:
        save_image(tmp_path / "images" / f"{name}.jpg")
    write("annotations.json", json.dumps(coco(names)))(tmp_path)
    data = open_folder(tmp_path, val_fraction=0.3)
    assert set(data.names("val")) == held_out(list(names), 0.3)
    assert sorted([*data.names("train"), *data.names("val")]) == list(names)
    assert np.array_equal(sample(data, "train")[1], DRAWN)


def changed(**changes: Any) -> Any:
    return write("train.json", json.dumps(coco(**changes)))


def annotation(**changes: Any) -> Any:
    content = coco()
    content["annotations"][0] |= changes
    return write("train.json", json.dumps(content))


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (write("train.json", "{"), {}, r"train\.json: is no json of COCO"),
        (write("train.json", "[]"), {}, r"train\.json: is no json of COCO"),
        (write("train.json", "[" * 100000), {}, r"train\.json: is no json of COCO"),
        (write("train.json", b"\xff\x00"), {}, r"train\.json: is no json of COCO"),
        (write("train.json", '{"images": []}'), {}, r"is no json of COCO \(KeyError: 'categories'"),
        (changed(images=[{"id": 1, "file_name": "a.jpg"}]), {}, r"images\[0\] has no height, width"),
        (changed(categories=[{"id": 1}]), {}, r"categories\[0\] has no name"),
        (changed(categories=[{"id": 1, "name": "cat"}] * 2), {}, r"cat come twice"),
        (changed(annotations={}), {}, r"its annotations are no list"),
        (changed(names="aa"), {}, r"two images have one name"),
        (changed(images=[]), {}, r"annotation 0 is of image 10, which is not in the list"),
        (changed(names="z"), {}, r"its image z\.jpg is in none of .*data\.dataset\.images=FOLDER"),
        (annotation(image_id=99), {}, r"annotation 0 is of image 99"),
        (annotation(category_id=99), {}, r"annotation 0 is of category 99"),
        (annotation(segmentation=[[0, 1, 2]]), {}, r"an annotation of a\.jpg is neither polygons nor run lengths"),
        (annotation(segmentation={"counts": "%%", "size": [3, 4]}), {}, r"an annotation of a\.jpg is "),
        (annotation(segmentation={"counts": [0, 4, 8], "size": [4, 3]}), {}, r"is of another size"),
        (annotation(segmentation=7), {}, r"neither polygons nor run lengths"),
        (
            changed(),
            {"masks": "masks/{name}", "images": "images/{name}", "annotations": "x.json"},
            r"data\.dataset\.masks: ",
        ),
        (changed(), {"classes": ["a", "b"]}, r"data\.dataset\.classes: .* has a COCO json, which says that itself"),
        (changed(), {"annotations": "nowhere.json"}, r"no COCO json of split train.*data\.dataset\.annotations="),
        (lambda r: (r / "images" / "a.jpg").write_bytes(b""), {}, r"a\.jpg: the image is damaged"),
        (
            lambda r: save_image(r / "images" / "a.jpg", (5, 5)),
            {},
            r"the mask is 4x3 pixels but its image .*a\.jpg is 5x5",
        ),
        (lambda r: (r / "images" / "b.jpg").unlink(), {}, r"b\.jpg: there is no such image"),
        (
            write("val.json", json.dumps({**coco(), "categories": []})),
            {"split": "val"},
            r"val\.json: its categories are not",
        ),
    ],
)
def test_a_mistake_in_a_json_is_one_line(tmp_path: Path, change: Any, keys: dict[str, Any], message: str) -> None:
    for name in "ab":
        save_image(tmp_path / "images" / f"{name}.jpg")
    changed()(tmp_path)
    change(tmp_path)
    split = keys.get("split", "train")

    def read_all() -> None:
        data = open_folder(tmp_path, **{key: value for key, value in keys.items() if key != "split"})
        assert data.legend.classes
        for index in range(2):
            sample(data, split, index)

    with pytest.raises(UserError, match=message) as caught:
        read_all()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 300


# -- the three forms ---------------------------------------------------------------------------------------------------


def test_index_colours_and_json_of_one_data_set_are_one_data_set(tmp_path: Path) -> None:
    for form in ("L", "rgb"):
        fill(tmp_path / form, names="ab", form=form)
        for name in "ab":
            save_mask(tmp_path / form / "masks" / f"{name}.png", np.array(DRAWN, dtype=np.uint8), form=form)
    for name in "ab":
        save_image(tmp_path / "json" / "images" / f"{name}.jpg")
    write("coco.json", json.dumps(coco()))(tmp_path / "json")
    first, *others = (open_folder(tmp_path / form) for form in ("L", "rgb", "json"))
    for other in others:
        assert tuple(other.classes) == tuple(first.classes)
        for split in ("train", "val"):
            assert other.names(split) == first.names(split)
            for one, two in zip(sample(first, split), sample(other, split), strict=True):
                np.testing.assert_array_equal(one, two)


# -- public data sets, which are yamls alone ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "files", "stored", "labels"),
    [
        ("camvid", 11, {"val/a.png": None, "valannot/a.png": None}, [0, 10, 11, 3], [0, 10, 255, 3]),
        (
            "cityscapes",
            19,
            {"leftImg8bit/val/ulm/ulm_1_leftImg8bit.png": None, "gtFine/val/ulm/ulm_1_gtFine_labelIds.png": None},
            [7, 33, 0, 26],
            [0, 18, 255, 13],
        ),
        (
            "ade20k",
            150,
            {"images/validation/a.jpg": None, "annotations/validation/a.png": None},
            [1, 150, 0, 2],
            [0, 149, 255, 1],
        ),
        (
            "pascal_context",
            59,
            {
                "JPEGImages/a.jpg": None,
                "JPEGImages/of_another_task.jpg": None,
                "SegmentationClassContext/a.png": None,
                "ImageSets/SegmentationContext/val.txt": "a\n",
            },
            [1, 59, 0, 2],
            [0, 58, 255, 1],
        ),
    ],
)
def test_public_data_in_its_own_layout(
    tmp_path: Path, name: str, count: int, files: dict[str, str | None], stored: list[int], labels: list[int]
) -> None:
    for place, text in files.items():
        if text is not None:
            write(place, text)(tmp_path)
        elif any(part in place for part in ("annot", "gtFine", "SegmentationClass")):
            save_mask(tmp_path / place, np.array([stored] * 3, dtype=np.uint8))
        else:
            save_image(tmp_path / place)
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[f"data={name}", f"data.root={tmp_path}"])
    data = instantiate(cfg, "data.dataset")
    assert len(data.legend.classes) == count
    assert len(data.names("val")) == 1
    np.testing.assert_array_equal(sample(data, "val")[1], [labels] * 3)
