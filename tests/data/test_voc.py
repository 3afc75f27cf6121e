import hashlib
import io
import os
import re
import struct
import tarfile
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from segmod.data.base import Split
from segmod.data.passes import verify
from segmod.data.sbd import read_mat
from segmod.data.synthetic import write_voc_tree
from segmod.data.transforms import EvalTransform
from segmod.data.voc import PascalVOC, download_voc, read_image, read_mask, require_space
from segmod.ground.errors import UserError
from segmod.ground.palettes import VOC_PALETTE
from segmod.ground.types import IGNORE_INDEX

PLAIN = EvalTransform()
REAL = Path(os.environ.get("SEGMOD_DATA", Path(__file__).parents[2] / "data"))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc_tree(tmp_path, train=4, val=2, size=(32, 48))


def first_id(voc: Path, split: str = "train") -> str:
    return (voc / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()[0]


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_root_may_be_any_of_three_folders(voc, levels):
    root = (voc, *voc.parents)[levels]
    dataset = Split(PascalVOC(root), "train", PLAIN)
    assert len(dataset) == 4
    sample = dataset[0]
    assert sample["image"].shape == (3, 32, 48)
    assert sample["mask"].shape == (32, 48)
    assert sample["mask"].dtype == torch.uint8
    assert sample["name"] == first_id(voc)


@pytest.mark.parametrize("year", [2007, 2011])
def test_years(tmp_path, year):
    write_voc_tree(tmp_path, train=1, val=1, size=(32, 32), year=year)
    assert len(Split(PascalVOC(tmp_path, year), "trainval", PLAIN)) == 2


def test_the_2011_archive_wraps_another_folder(tmp_path):
    write_voc_tree(tmp_path / "TrainVal", train=1, val=1, size=(32, 32), year=2011)
    assert len(Split(PascalVOC(tmp_path, 2011), "val", PLAIN)) == 1


def test_images_are_rgb(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 10)).save(tmp_path / "red.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "red.jpg").mean(axis=(0, 1)), (200, 30, 10), atol=4)


def test_exif_does_not_turn_an_image_away_from_its_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (10, 20, 3)


def jpeg_with_thumbnail() -> bytes:
    """A JPEG of noise whose EXIF header holds another JPEG, with an end-of-image marker of its own."""
    rng, files = np.random.default_rng(0), []
    for side in (16, 200):
        files.append(BytesIO())
        Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(files[-1], "jpeg", quality=95)
    thumbnail, picture = (file.getvalue() for file in files)
    content = b"Exif\0\0" + thumbnail
    return picture[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + picture[2:]


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(tmp_path):
    file = tmp_path / "image.jpg"
    whole = jpeg_with_thumbnail()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"image\.jpg: the image is damaged"):
        read_image(file)
    file.write_bytes(whole + bytes(100))  # padding behind the end is no damage
    assert read_image(file).shape == (200, 200, 3)


def test_palette_is_that_of_the_challenge():
    # From the development kit: aeroplane dark red, bicycle dark green, tvmonitor (0, 64, 128), void cream.
    palette = VOC_PALETTE
    assert palette[[0, 1, 2, 20, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 64, 128], [224, 224, 192]]


def test_masks_are_palette_indices(tmp_path):
    labels = np.array([[0, 20], [255, 7]], dtype=np.uint8)
    png = Image.fromarray(labels, mode="P")
    png.putpalette(VOC_PALETTE.tobytes())
    png.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), labels)


def test_test_split_without_masks_is_all_void(voc):
    (voc / "ImageSets/Segmentation/test.txt").write_text(first_id(voc) + "\n")
    (voc / "SegmentationClass" / f"{first_id(voc)}.png").unlink()
    assert (Split(PascalVOC(voc), "test", PLAIN)[0]["mask"] == IGNORE_INDEX).all()


def test_test_split_with_masks_uses_them(voc):
    (voc / "ImageSets/Segmentation/test.txt").write_text(first_id(voc) + "\n")
    test, train = Split(PascalVOC(voc), "test", PLAIN)[0], Split(PascalVOC(voc), "train", PLAIN)[0]
    assert torch.equal(test["mask"], train["mask"])


def add_sbd(voc: Path, form: str, ids: list[str]) -> None:
    """Give each id a mask of horses in one of SBD's two forms, and an image in SBD's own folder."""
    sbd = voc.parents[1] / "sbd"
    (sbd / "img").mkdir(parents=True)
    mask = np.full((32, 48), 13, dtype=np.uint8)
    for name in ids:
        Image.new("RGB", (48, 32)).save(sbd / "img" / f"{name}.jpg")
        if form == "mat":
            (sbd / "cls").mkdir(exist_ok=True)
            savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": mask, "CategoriesPresent": [13]}})
        else:
            (voc / "SegmentationClassAug").mkdir(exist_ok=True)
            Image.fromarray(mask).save(voc / "SegmentationClassAug" / f"{name}.png")


@pytest.mark.parametrize("form", ["mat", "png"])
def test_trainaug_adds_sbd_without_val(voc, form):
    train, val = Split(PascalVOC(voc), "train", PLAIN), Split(PascalVOC(voc), "val", PLAIN)
    add_sbd(voc, form, ["2008_000001", train.names[0], *val.names])
    augmented = Split(PascalVOC(voc.parents[1]), "trainaug", PLAIN)
    assert list(augmented.names) == [*train.names, "2008_000001"]
    assert (augmented[4]["mask"] == 13).all()
    # An image of VOC train keeps VOC's own mask, which has void borders.
    assert torch.equal(augmented[0]["mask"], train[0]["mask"])


def test_trainvalaug_adds_sbd_to_all_of_voc(voc):
    trainval = PascalVOC(voc.parents[1]).names("trainval")
    add_sbd(voc, "png", ["2008_000001", *trainval])
    data = PascalVOC(voc.parents[1])
    assert data.names("trainvalaug") == [*trainval, "2008_000001"]
    assert data.files("trainvalaug", trainval[0])[1].parent.name == "SegmentationClass"


@pytest.mark.parametrize("form", ["mat", "png"])
def test_sbd_train_is_sbds_list_with_sbds_masks_but_for_images_of_val(voc, form):
    train, val = (PascalVOC(voc).names(split) for split in ("train", "val"))
    add_sbd(voc, form, ["2008_000001", "2008_000002", train[0], *val])
    own_list = voc.parents[1] / "sbd" / "train.txt"
    own_list.write_text(f"2008_000002\n{val[0]}\n{train[0]}\n")
    split = Split(PascalVOC(voc.parents[1]), "sbd_train", PLAIN)
    assert list(split.names) == ["2008_000002", train[0]]
    assert (split[1]["mask"] == 13).all()  # SBD's mask, not VOC's
    own_list.write_text("2008_000003\n")
    with pytest.raises(UserError, match=r"sbd/train\.txt: no mask of 2008_000003"):
        PascalVOC(voc.parents[1]).names("sbd_train")
    own_list.unlink()
    with pytest.raises(UserError, match=r"sbd/train\.txt: split sbd_train needs SBD's own list.*trainaug"):
        PascalVOC(voc.parents[1]).names("sbd_train")


def test_seg11valid_comes_with_segmod_unless_voc_has_a_list_of_that_name(voc):
    names = PascalVOC(voc).names("seg11valid")
    assert len(set(names)) == 736
    assert names == sorted(names)
    (voc / "ImageSets/Segmentation/seg11valid.txt").write_text(first_id(voc) + "\n")
    assert PascalVOC(voc).names("seg11valid") == [first_id(voc)]


def test_trainaug_without_sbd_names_both_places_and_the_command(voc):
    with pytest.raises(UserError, match=r"SegmentationClassAug.*cls.*segmod-train data=voc_aug .*data\.download=true"):
        Split(PascalVOC(voc.parents[1]), "trainaug", PLAIN)


def test_missing_tree_names_path_and_command(tmp_path):
    with pytest.raises(UserError) as caught:
        Split(PascalVOC(tmp_path), "train", PLAIN)
    assert str(tmp_path / "VOCdevkit" / "VOC2012") in str(caught.value)
    assert f"segmod-train data=voc data.root={tmp_path} data.download=true" in str(caught.value)


def test_missing_list_names_file_and_choices(voc):
    with pytest.raises(UserError, match=r"Segmentation/tarin\.txt.*choose one of train, trainval, val"):
        Split(PascalVOC(voc), "tarin", PLAIN)


def test_empty_list(voc):
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"train\.txt: the list is empty"):
        Split(PascalVOC(voc), "train", PLAIN)


def test_unknown_year(voc):
    with pytest.raises(UserError, match=r"data\.dataset\.year=2013.*2007 to 2012"):
        Split(PascalVOC(voc, 2013), "train", PLAIN)


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(b"no picture at all")


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "other"])
@pytest.mark.parametrize("part", ["JPEGImages/{}.jpg", "SegmentationClass/{}.png"])
def test_bad_files_are_named_when_met(voc, part, how):
    file = voc / part.format(first_id(voc))
    damage(file, how)
    dataset = Split(PascalVOC(voc), "train", PLAIN)
    with pytest.raises(UserError) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert dataset[1]["name"] != first_id(voc)  # the others can still be read


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "other"])
def test_bad_mat_files_are_named(tmp_path, how):
    file = tmp_path / "a.mat"
    savemat(file, {"GTcls": {"Segmentation": np.eye(3, dtype=np.uint8)}})
    np.testing.assert_array_equal(read_mat(file), np.eye(3))
    damage(file, how)
    with pytest.raises(UserError, match=r"a\.mat: .*mask") as caught:
        read_mat(file)
    assert "\n" not in str(caught.value)


def test_mat_of_something_else(tmp_path):
    savemat(tmp_path / "a.mat", {"boxes": [1, 2]})
    with pytest.raises(UserError, match=r"a\.mat: .*not SBD's"):
        read_mat(tmp_path / "a.mat")


def test_mask_of_another_size_names_both_files(voc):
    file = voc / "SegmentationClass" / f"{first_id(voc)}.png"
    Image.new("L", (10, 20)).save(file)
    with pytest.raises(UserError, match=r"\.png: the mask is 10x20 .*\.jpg is 48x32"):
        Split(PascalVOC(voc), "train", PLAIN)[0]


def test_labels_that_do_not_exist_are_listed(voc):
    file = voc / "SegmentationClass" / f"{first_id(voc)}.png"
    mask = np.zeros((32, 48), dtype=np.uint8)
    mask[0, :4] = (20, 21, 200, 255)
    Image.fromarray(mask).save(file)
    with pytest.raises(UserError, match=r"\.png: labels \[21, 200\] are outside 0\.\.20 and 255"):
        Split(PascalVOC(voc), "train", PLAIN)[0]


def test_mask_in_colours(voc):
    Image.new("RGB", (48, 32)).save(voc / "SegmentationClass" / f"{first_id(voc)}.png")
    with pytest.raises(UserError, match=r"stored as RGB colours"):
        Split(PascalVOC(voc), "train", PLAIN)[0]


def test_verify_passes_a_good_tree(voc):
    verify([Split(PascalVOC(voc), "trainval", PLAIN)])


def test_verify_lists_ten_and_counts_the_rest(tmp_path):
    voc = write_voc_tree(tmp_path, train=14, val=1, size=(32, 32))
    dataset = Split(PascalVOC(voc), "train", PLAIN)
    for name in dataset.names[:12]:
        damage(dataset.dataset.files("train", name)[0], "cut")
    with pytest.raises(UserError, match=r"^12 of 15 images are bad: ") as caught:
        verify([dataset, Split(PascalVOC(voc), "val", PLAIN)])
    assert str(caught.value).count("is damaged") == 10
    assert str(caught.value).endswith("; and 2 more")
    assert "\n" not in str(caught.value)


def test_download_leaves_a_tree_alone_and_a_failure_is_one_line(voc, tmp_path, monkeypatch):
    import torchvision.datasets

    def unreachable(root, year, **_):
        raise OSError("<urlopen error Name or service not known>")

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", unreachable)
    monkeypatch.setattr("segmod.data.voc._DOWNLOAD_BYTES", 1)
    for root in (voc, *voc.parents[:2]):
        download_voc(root, 2012)
    with pytest.raises(UserError, match=r"download of PASCAL VOC 2012 failed \(<urlopen error"):
        download_voc(tmp_path / "elsewhere", 2012)


def archive_of(*members: tuple[str, dict[str, object]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, settings in members:
            member = tarfile.TarInfo(name)
            for key, value in settings.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return content.getvalue()


LISTS = ("VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt", {"size": 3})


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("../../victim", {"size": 3}), "which is outside"),
        (("VOCdevkit/out", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), "absolute path"),
        (("VOCdevkit/out", {"type": tarfile.SYMTYPE, "linkname": "../../.."}), "outside the destination"),
        (("VOCdevkit/pipe", {"type": tarfile.FIFOTYPE}), "special file"),
        (("VOCdevkit/much", {"size": 2000}), "come out of it"),
    ],
)
def test_an_archive_stays_in_its_folder(tmp_path, monkeypatch, member, message):
    import torchvision.datasets.voc as torchvision_voc

    content = archive_of(LISTS, member)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VOC.tar").write_bytes(content)  # so nothing is fetched, if the checksum is right
    source = {"url": "https://nowhere.invalid/VOC.tar", "filename": "VOC.tar", "base_dir": "VOCdevkit/VOC2012"}
    monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, "2012", {**source, "md5": hashlib.md5(content).hexdigest()})
    monkeypatch.setattr("segmod.data.voc._DOWNLOAD_BYTES", 1000)
    with pytest.raises(UserError, match=r"data: the download of PASCAL VOC 2012 failed \(") as caught:
        download_voc(tmp_path / "data", 2012)
    assert message in str(caught.value.__cause__)  # told in part where the path is long
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("victim"))
    assert not list(tmp_path.rglob("Segmentation"))  # half a tree would pass for a whole one the next time
    assert tarfile.TarFile.extraction_filter is None


@pytest.mark.parametrize("what", ["JPEGImages/{}.jpg", "SegmentationClass/{}.png", "ImageSets/Segmentation/train.txt"])
def test_a_pipe_is_no_file(voc, what):
    dataset = PascalVOC(voc)
    name = first_id(voc)
    file = voc / what.format(name)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=file.name):
        dataset.read("train", name)


def test_pictures_that_unpack_to_gigabytes_are_refused(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "image.jpg")
    data = bytearray((tmp_path / "image.jpg").read_bytes())
    size = data.index(b"\xff\xc0") + 5  # height and width
    data[size : size + 4] = b"\xfd\xe8\xfd\xe8"  # 65000 x 65000
    (tmp_path / "image.jpg").write_bytes(data)
    with pytest.raises(UserError, match=r"image\.jpg: the image is damaged"):
        read_image(tmp_path / "image.jpg")
    header = struct.pack(">IIBBBBB", 65000, 65000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    png = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    with pytest.raises(UserError, match=r"mask\.png: the mask is damaged \(Image size"):
        read_mask(tmp_path / "mask.png")


@settings(derandomize=True, max_examples=50, deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_any_bytes_are_a_list_or_one_line(tmp_path_factory, read_or_line, content):
    folder = tmp_path_factory.mktemp("lists") / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_bytes(content)
    names = read_or_line(folder / "train.txt", PascalVOC(folder.parents[3]).names, "train")
    assert names is None or names == list(dict.fromkeys(content.decode("utf-8-sig").split()))


def test_a_full_disk_is_seen_before_the_download(tmp_path):
    with pytest.raises(UserError, match=r"GB free, the download needs 1000000000 GB.*data\.root"):
        require_space(tmp_path, 10**18)


@pytest.mark.skipif(not (REAL / "VOCdevkit").is_dir(), reason="real PASCAL VOC is not there")
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images_read(split):
    dataset = Split(PascalVOC(REAL), split, PLAIN)
    for index in range(0, len(dataset), 20):
        image, mask = dataset.read(index)
        assert max(image.shape) <= 500
        # An independent reading of the same files.
        jpeg, mask_file = dataset.dataset.files(split, dataset.names[index])
        png = Image.open(mask_file)
        assert png.mode == "P"
        np.testing.assert_array_equal(mask, np.asarray(png))
        np.testing.assert_array_equal(image[:, :, ::-1], cv2.imread(str(jpeg)))


@pytest.mark.parametrize("name", ["../../../../victim", "/victim", "a/../../b", "a\\b"])
def test_an_entry_of_a_list_that_leads_elsewhere_is_refused_with_its_list(voc, name):
    file = voc / "ImageSets/Segmentation" / "val.txt"
    file.write_text(f"{first_id(voc, 'val')}\n{name}\n")
    message = re.escape(f"{file}: {name!a} can be no file's name: ")
    with pytest.raises(UserError, match=message):
        Split(PascalVOC(voc), "val", PLAIN)


@pytest.mark.parametrize("split", ["../Segmentation/val", "/val", "sub/val", ".."])
def test_a_split_is_a_name_and_no_path(voc, split):
    with pytest.raises(UserError, match=r"^split '.*' can be no file's name: "):
        Split(PascalVOC(voc), split, PLAIN)
