"""Pictures: pixels that are written are read back, figures show what their labels say, files are
whole or absent.
"""

import io
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import sdediff as sd
from sdediff.plots import (
    StepRecorder,
    image_grid,
    image_rows,
    reverse_process,
    save_png,
    scatter_flow,
    step_sizes,
)


def images(n, channels=1, height=3, width=3):
    """Images whose pixels are exact 8-bit values, and these values (N, H, W, C)."""
    v = np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(v.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1), v


def reread(picture, path):
    save_png(picture, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def refusal(kind, *words):
    """Expect a one-line error of that kind in which all these words occur."""
    return pytest.raises(
        kind, match="(?s)" + "".join(f"(?=.*{word})" for word in words) + r"(?!.*\n)"
    )


def bars(frames):
    """Frames (K, n, 1, 2, 2), each of one grey value: its place k n + i as a fraction."""
    k, n = frames
    values = torch.linspace(-1, 1, k * n).reshape(k, n, 1, 1, 1)
    return values.expand(k, n, 1, 2, 2)


# -- image_grid and save_png


def test_every_pixel_of_a_grey_grid(tmp_path):
    x, v = images(5, height=2, width=3)
    grid = reread(image_grid(x, columns=3, scale=2, pad=1), tmp_path / "a.png")
    expected = np.full((2 * 5 + 1, 3 * 7 + 1), 127, np.uint8)
    for i in range(5):
        row, column = divmod(i, 3)
        for y in range(4):
            for z in range(6):
                expected[1 + 5 * row + y, 1 + 7 * column + z] = v[i, y // 2, z // 2, 0]
    np.testing.assert_array_equal(grid, expected)


def test_every_pixel_of_a_colour_grid_without_lines(tmp_path):
    x, v = images(2, channels=3)
    grid = reread(image_grid(x, columns=2, scale=1, pad=0), tmp_path / "a.png")
    np.testing.assert_array_equal(grid, np.concatenate([v[0], v[1]], axis=1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_caption_is_a_strip_above_the_same_picture(channels):
    x, _ = images(4, channels, 8, 8)
    plain, captioned = (
        np.asarray(image_grid(x, caption=text)) for text in (None, "Heun, 39 evaluations")
    )
    strip = captioned[: len(captioned) - len(plain)]
    np.testing.assert_array_equal(captioned[len(strip) :], plain)
    assert strip.max() > 200  # the letters
    assert not strip[:, -2:].any()  # which end inside the picture, 100 pixels wide
    assert len(strip) == 6 + 2 * 16  # two lines of them
    other = np.asarray(image_grid(x, caption="DDIM, 40 evaluations"))[: len(strip)]
    assert (strip != other).any()


def test_rows_have_their_labels_beside_them():
    x, v = images(6, height=4, width=4)
    figure = image_rows({"real": x[:3], "Heun\n39 evaluations": x[3:]})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["real", "Heun\n39 evaluations"]
    pixels = np.asarray(axes.images[0].get_array())
    for middle, first in zip(axes.get_yticks(), (0, 3), strict=True):
        size = 2 + 48  # a tile of 4 x 4 pixels and a line
        top = round(middle - 24)
        for i in range(3):
            tile = pixels[top : top + 48, 2 + i * size : 2 + i * size + 48]
            np.testing.assert_array_equal(tile[::12, ::12], v[first + i, ..., 0])


def test_rows_that_are_none_are_refused():
    x, _ = images(4)
    with refusal(TypeError, "by label"):
        image_rows({})
    with refusal(TypeError, "by label"):
        image_rows([x])
    with refusal(ValueError, "one shape"):
        image_rows({"a": x, "b": x[:2]})
    with refusal(ValueError, r"rows\['a'\]"):
        image_rows({"a": x[0]})


def test_values_are_clipped_and_rounded():
    x = torch.tensor([[[[-7.0, -1, 1, 3, 0.0, 0.9999, 0.997, 0.995]]]])
    assert np.asarray(image_grid(x, scale=1, pad=0)).tolist() == [
        [0, 0, 255, 255, 128, 255, 255, 254]
    ]


@pytest.mark.parametrize(
    ("size", "tile"), [(4, 48), (8, 48), (28, 56), (32, 64), (64, 64), (256, 256)]
)
def test_default_scale_is_readable(size, tile):
    assert image_grid(torch.zeros(1, 1, size, size), pad=0).size == (tile, tile)


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3), (10, 4, 3)]
)
def test_default_columns(count, columns, rows):
    assert image_grid(torch.zeros(count, 1, 2, 2), scale=1, pad=0).size == (2 * columns, 2 * rows)


def test_more_columns_than_images_leave_no_gap():
    assert image_grid(torch.zeros(2, 1, 2, 2), columns=9, scale=1, pad=0).size == (4, 2)


def test_tensor_of_any_kind_and_left_as_it_was():
    x = images(2)[0].double().requires_grad_()
    before = x.detach().clone()
    image_grid(x.flip(0))
    assert torch.equal(x, before)
    assert (
        image_grid(torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16), scale=1, pad=0).getpixel(
            (0, 0)
        )
        == 191
    )


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (torch.zeros(1, 8, 8), {}, [r"\(1, 8, 8\)", r"\(N, C, H, W\)"]),
        (torch.zeros(1, 4, 8, 8), {}, [r"\(1, 4, 8, 8\)", "C = 1 or 3", "choose channels"]),
        (torch.zeros(0, 1, 8, 8), {}, [r"\(0, 1, 8, 8\)"]),
        (
            torch.tensor([[[[0.0, torch.nan], [torch.inf, 0]]]]),
            {},
            ["NaN or inf in 2 of 4", r"first at \(0, 0, 0, 1\)"],
        ),
        (torch.zeros(1, 1, 2, 2), {"columns": 0}, ["columns must be at least 1", "got 0"]),
        (torch.zeros(1, 1, 2, 2), {"scale": -1}, ["scale must be at least 1"]),
        (torch.zeros(1, 1, 2, 2), {"pad": -1}, ["pad", "0 or more"]),
    ],
)
def test_grids_that_cannot_be(x, options, words):
    with refusal(ValueError, *words):
        image_grid(x, **options)


def test_save_replaces_the_file_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"the old one")
    with (
        monkeypatch.context() as patch,
        refusal(ValueError, "cannot write", r"a\.png", "No space left", "choose"),
    ):
        patch.setattr(os, "replace", failing(OSError(28, "No space left on device")))
        save_png(image_grid(images(1)[0]), path)
    assert path.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["a.png"]
    save_png(image_grid(images(1)[0]), str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["a.png"]
    # for others to read, unlike a temporary file
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def failing(error):
    def fail(*_):
        raise error

    return fail


def test_places_that_cannot_be_written(tmp_path):
    picture = image_grid(images(1)[0])
    with refusal(FileNotFoundError, "no folder", "gone", "make it"):
        save_png(picture, tmp_path / "gone" / "a.png")
    with refusal(ValueError, r"a\.jpg", r"\.png"):
        save_png(picture, tmp_path / "a.jpg")
    (tmp_path / "b.png").mkdir()
    with refusal(ValueError, r"b\.png", "is a folder"):
        save_png(picture, tmp_path / "b.png")
    with refusal(TypeError, "Pillow image or a matplotlib Figure", "Tensor"):
        save_png(torch.zeros(2), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["b.png"]


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs a folder where not even root can write"
)
def test_folder_without_permission():
    with refusal(ValueError, "cannot write", "/proc/self/a.png", "choose a folder"):
        save_png(image_grid(images(1)[0]), "/proc/self/a.png")


# -- reverse_process


def panel(figure):
    (axes,) = figure.axes
    (shown,) = axes.images
    return axes, np.asarray(shown.get_array())


def grey_levels(pixels, rows, columns):
    """The value in the middle of each tile, in a picture of equal tiles."""
    height, width = pixels.shape
    ys = [int((i + 0.5) * height / rows) for i in range(rows)]
    xs = [int((i + 0.5) * width / columns) for i in range(columns)]
    return pixels[np.ix_(ys, xs)].tolist()


def levels(*places, of):
    return [round(127.5 * (float(v) + 1)) for v in torch.linspace(-1, 1, of)[list(places)]]


def test_columns_are_times_and_rows_are_samples():
    axes, pixels = panel(reverse_process(bars((3, 2)), [1.0, 0.5, 0.0]))
    assert grey_levels(pixels, 2, 3) == [levels(0, 2, 4, of=6), levels(1, 3, 5, of=6)]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "t = 1.00",
        "t = 0.50",
        "t = 0.00",
    ]
    assert axes.get_title(loc="left") == "Reverse process: from noise to data"
    assert "from 1 (noise) on the left to 0 (data) on the right" in axes.get_xlabel()


def test_labels_stand_under_their_columns():
    axes, pixels = panel(reverse_process(bars((4, 1)), [3.0, 2.0, 1.0, 0.0]))
    middles = [pixels[pixels.shape[0] // 2, int(x)] for x in axes.get_xticks()]
    assert middles == levels(0, 1, 2, 3, of=4)
    left, right, bottom, top = axes.images[0].get_extent()
    assert (left, right, bottom, top) == (0, pixels.shape[1], pixels.shape[0], 0)


def test_noise_is_on_the_left_whatever_the_order():
    axes, pixels = panel(reverse_process(bars((3, 1)), [0.0, 1.0, 0.25]))
    assert grey_levels(pixels, 1, 3) == [levels(1, 2, 0, of=3)]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "t = 1.00",
        "t = 0.25",
        "t = 0.00",
    ]


@pytest.mark.parametrize(
    ("columns", "places"), [(1, [8]), (2, [0, 8]), (3, [0, 4, 8]), (9, range(9)), (99, range(9))]
)
def test_some_of_many_times(columns, places):
    _, pixels = panel(reverse_process(bars((9, 1)), torch.linspace(1, 0, 9), columns=columns))
    assert grey_levels(pixels, 1, len(places)) == [levels(*places, of=9)]


def test_small_times_are_not_called_zero():
    axes, _ = panel(reverse_process(bars((2, 1)), [1.0, 1e-3]))
    assert axes.get_xticklabels()[-1].get_text() == "t = 1e-03"


def test_colour_frames(tmp_path):
    x, v = images(2, channels=3)
    (axes,) = reverse_process(x[:, None], [1.0, 0.0]).axes
    shown = np.asarray(axes.images[0].get_array())
    # one pixel of each 16x16 block; lines of 2
    np.testing.assert_array_equal(shown[2:50:16, 52:100:16], v[1])
    assert reread(reverse_process(x[:, None], [1.0, 0.0]), tmp_path / "a.png").shape[2] >= 3


@pytest.mark.parametrize(
    ("frames", "times", "words"),
    [
        (torch.zeros(3, 1, 4, 4), [1, 0.5, 0], [r"\(K, n, C, H, W\)", r"\(3, 1, 4, 4\)"]),
        (torch.zeros(3, 2, 2, 4, 4), [1, 0.5, 0], ["C = 1 or 3"]),
        (torch.zeros(3, 2, 1, 4, 4), [1, 0], ["2 times for 3 frames", "one finite time for each"]),
        (torch.zeros(2, 2, 1, 4, 4), [1, float("nan")], ["one finite time"]),
        (torch.full((1, 1, 1, 1, 1), torch.inf), [1], ["frames has NaN or inf in 1 of 1"]),
    ],
)
def test_frames_that_do_not_fit(frames, times, words):
    with refusal(ValueError, *words):
        reverse_process(frames, times)


# -- scatter_flow


def cloud(k, n, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(k, n, 2, generator=generator)
    frames[0] *= spread
    return frames


def drawn(axes, which=0):
    return np.asarray(axes.collections[which].get_offsets())


def test_panels_show_the_clouds_and_the_last_one_the_paths():
    frames, t = cloud(9, 200), torch.linspace(1, 0, 9).tolist()
    *clouds, paths = scatter_flow(frames, t, columns=3).axes
    assert [axes.get_xlabel() for axes in clouds] == ["t = 1.00", "t = 0.50", "t = 0.00"]
    for axes, k in zip(clouds, (0, 4, 8), strict=True):
        np.testing.assert_allclose(drawn(axes), frames[k], rtol=1e-6)
    assert paths.get_xlabel() == "60 paths"
    assert len(paths.lines) == 60
    lines = np.stack([line.get_xydata() for line in paths.lines], axis=1)
    assert lines.shape == (9, 60, 2)
    np.testing.assert_allclose(lines[:, 0], frames[:, 0], rtol=1e-6)
    np.testing.assert_allclose(lines[:, -1], frames[:, -1], rtol=1e-6)
    np.testing.assert_allclose(drawn(paths, 0), lines[0])
    np.testing.assert_allclose(drawn(paths, 1), lines[-1])


def test_rising_times_are_turned_round():
    frames = cloud(3, 10)
    *clouds, paths = scatter_flow(frames, [0.0, 0.5, 1.0], columns=None).axes
    np.testing.assert_allclose(drawn(clouds[0]), frames[2], rtol=1e-6)
    np.testing.assert_allclose(drawn(paths, 1), frames[0], rtol=1e-6)
    assert paths.get_xlabel() == "10 paths"


@pytest.mark.parametrize(("spread", "same"), [(1.0, True), (50.0, False)])
def test_axes_are_equal_square_and_hold_all_points(spread, same):
    frames = cloud(4, 50, spread) + torch.tensor([100.0, -3.0])
    figure = scatter_flow(frames, [1.0, 0.7, 0.4, 0.0], columns=None)
    figure.draw_without_rendering()
    for axes in figure.axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert axes.get_aspect() == 1
        assert right - left == pytest.approx(high - low)
        for collection in axes.collections:
            x, y = np.asarray(collection.get_offsets()).T
            assert ((left < x) & (x < right) & (low < y) & (y < high)).all()
    widths = {round(float(np.ptp(axes.get_xlim())), 6) for axes in figure.axes[:-1]}
    assert (len(widths) == 1) == same


@pytest.mark.parametrize(
    ("frames", "times", "words"),
    [
        (torch.zeros(3, 5, 3), [1, 0.5, 0], [r"points \(K, n, 2\)", r"\(3, 5, 3\)"]),
        (torch.zeros(3, 5, 2), [1, 0], ["2 times for 3 frames"]),
        (torch.full((2, 1, 2), torch.nan), [1, 0], ["NaN or inf in 4 of 4"]),
        (torch.zeros(0, 5, 2), [], [r"\(0, 5, 2\)"]),
    ],
)
def test_points_that_do_not_fit(frames, times, words):
    with refusal(ValueError, *words):
        scatter_flow(frames, times)


def test_all_points_in_one_place_can_be_drawn(tmp_path):
    assert reread(scatter_flow(torch.zeros(2, 3, 2), [1.0, 0.0]), tmp_path / "a.png").ndim == 3


# -- no global state


@pytest.mark.thin(0)
def test_figures_leave_pyplot_alone(tmp_path):
    code = (
        "import sys, torch, sdediff.plots as p\n"
        "print(sorted({'matplotlib', 'PIL', 'matplotlib.pyplot'} & set(sys.modules)))\n"
        "p.save_png(p.reverse_process(torch.zeros(2, 1, 1, 2, 2), [1, 0]), 'a.png')\n"
        "p.save_png(p.scatter_flow(torch.zeros(2, 1, 2), [1, 0]), 'b.png')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path, "MPLBACKEND": "tkagg"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_figure_is_a_plain_figure_that_users_can_go_on_with():
    figure = reverse_process(bars((2, 1)), [1.0, 0.0])
    assert type(figure) is Figure
    figure.suptitle("mine")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    assert b"mine" in buffer.getvalue()


# -- steps of adaptive solvers


def test_step_recorder_keeps_the_times_of_accepted_steps():
    """As many as were accepted, from the start to the end, and to where a sample failed; rejected
    attempts leave nothing.
    """

    def net(x, t):
        return torch.where((x[:, :1] > 1e4) & (t[:, None] < 0.5), torch.nan, 0.1 * x)

    steps = StepRecorder()
    start = torch.tensor([[0.5], [1.5], [1e6]], dtype=torch.float64)
    out = sd.sample(
        sd.ScoreModel(net, sd.VP()),
        (3, 1),
        solver=sd.RK45(1e-8, 1e-8),
        seed=0,
        x_init=start,
        callback=steps,
        on_fail="return",
        last="noisy",
        dtype=torch.float64,
    )
    paths = steps.times(out)
    assert out.status.tolist() == [0, 0, 1]
    assert [len(path) - 1 for path in paths] == out.accepted.tolist()
    for path, end in zip(paths, (1e-3, 1e-3, out.failures[0].t), strict=True):
        assert (float(path[0]), float(path[-1])) == (1.0, end)
        assert bool((path.diff() < 0).all())


def test_step_sizes_draws_every_size_over_the_time_it_covers():
    paths = [
        torch.tensor([1.0, 0.75, 0.25, 0.0]),
        torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0]),
        torch.tensor([1.0, 0.5, 0.25, 0.0]),
    ]
    figure = step_sizes(paths)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata())]
    for line, path in zip(lines, paths, strict=False):
        np.testing.assert_allclose(line.get_xdata(), path)
        np.testing.assert_allclose(line.get_ydata()[:-1], -path.diff().numpy())
        assert line.get_drawstyle() == "steps-post"
    assert axes.get_yscale() == "log"
    assert axes.get_xlim() == (1.0, 0.0)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["fewest: 3 steps", "most: 4 steps", "3 samples"]


@pytest.mark.parametrize(
    "times", [[], [torch.tensor([1.0])], [torch.tensor([1.0, np.nan])], [torch.zeros(2, 2)]]
)
def test_step_sizes_refuses_what_is_no_path(times):
    with refusal(ValueError, "two finite times"):
        step_sizes(times)
