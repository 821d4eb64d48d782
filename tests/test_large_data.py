"""Large data: memory-mapped arrays, folders and shards, read a batch at a time."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, refuse

from sdediff.cli import large
from sdediff.data import load_data
from sdediff.large_data import ImageFolder, Shards, open_array
from sdediff.sources import source_of

BYTES = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (24, 8, 8, 3), np.uint8)


def write_folder(folder: Path, classes: int = 2) -> Path:
    from PIL import Image

    for i, picture in enumerate(BYTES):
        place = folder / f"class{i % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:03d}.png")
    return folder


def write_shards(folder: Path) -> str:
    """Three tar files of eight pictures and labels, as WebDataset has them."""
    from PIL import Image

    for shard in range(3):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as file:
            for i in range(8 * shard, 8 * shard + 8):
                content = io.BytesIO()
                Image.fromarray(BYTES[i]).save(content, format="png")
                for suffix, data in (("png", content.getvalue()), ("cls", str(i % 4).encode())):
                    entry = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    entry.size = len(data)
                    file.addfile(entry, io.BytesIO(data))
    return str(folder / "part-*.tar")


def taken(data: object, steps: int = 4, start: int = 0) -> list[Any]:
    source = source_of(data, None, None, 6, 0)
    with torch.random.fork_rng():
        source.probe()
        batches = source.batches(start)
        found = [next(batches) for _ in range(start, steps)]
    return [each.part(torch.arange(each.size)) for each in found]


def test_an_array_file_is_mapped_with_its_channels_first(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES)
    array = open_array(tmp_path / "x.npy")
    assert isinstance(array, np.memmap)
    assert array.shape == (24, 3, 8, 8)
    np.testing.assert_array_equal(array, BYTES.transpose(0, 3, 1, 2))
    np.save(tmp_path / "grey.npy", BYTES[..., 0])
    assert open_array(tmp_path / "grey.npy").shape == (24, 1, 8, 8)
    np.save(tmp_path / "floats.npy", BYTES / 255.0)
    with pytest.raises(ValueError, match="images of float64: expected bytes"):
        open_array(tmp_path / "floats.npy")
    assert open_array(tmp_path / "floats.npy", raw=True).shape == (24, 8, 8, 3)
    np.savez(tmp_path / "x.npz", x=BYTES)
    with pytest.raises(ValueError, match="no single array"):
        open_array(tmp_path / "x.npz")


@pytest.mark.parametrize("image_size", [None, 5])
def test_a_folder_has_the_pictures_and_classes_that_reading_it_whole_has(
    tmp_path: Path, image_size: int | None
) -> None:
    folder = write_folder(tmp_path / "pictures")
    whole = load_data(folder, image_size=image_size)
    lazy = ImageFolder(folder, image_size=image_size)
    assert lazy.classes == whole.classes == ("class0", "class1")
    assert whole.labels is not None
    for i in range(len(lazy)):
        x, label = lazy[i]
        assert label == int(whole.labels[i])
        # bytes: half of a 255th of the range
        torch.testing.assert_close(x.float() / 127.5 - 1, whole.x[i], rtol=0, atol=0.5 / 127)
    grey = ImageFolder(folder, labels=False, colour=False)[0]
    assert isinstance(grey, torch.Tensor)
    assert grey.shape == (1, 8, 8)


def test_shards_are_read_in_batches_and_their_place_is_kept(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)

    def shards(**options: Any) -> Shards:
        return Shards(pattern, labels=True, **options)

    plain = taken(shards(mixed=1))
    expected = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    assert torch.equal(torch.cat([each.x for each in plain]), expected)
    labels = torch.cat([each.condition["label"] for each in plain])
    assert labels.tolist() == [i % 4 for i in range(24)]
    whole = taken(shards(), 9)
    assert not torch.equal(whole[0].x, plain[0].x)
    assert not torch.equal(whole[0].x, whole[4].x)
    for start in (2, 4, 7):
        for one, two in zip(taken(shards(), 9, start), whole[start:], strict=True):
            assert torch.equal(one.x, two.x)
            assert torch.equal(one.condition["label"], two.condition["label"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_webdataset_is_read_in_batches(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_shards(tmp_path)
    files = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    data = (
        webdataset.WebDataset(files, shardshuffle=False).decode("torchrgb").to_tuple("png", "cls")
    )
    expected = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).copy()).float() / 255
    found = taken(data, 5)
    assert torch.equal(torch.cat([each.x for each in found])[:24], expected)
    assert found[4].condition["label"].tolist() == [0, 1, 2, 3, 0, 1]
    gc.collect()  # files that webdataset leaves open


def test_a_damaged_shard_and_samples_of_other_kinds_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    content = io.BytesIO()
    np.save(content, BYTES[0])
    with tarfile.open(tmp_path / "part-0.tar", "w") as file:
        entry = tarfile.TarInfo("0000.npy")
        entry.size = len(content.getvalue())
        file.addfile(entry, io.BytesIO(content.getvalue()))
    assert torch.equal(next(iter(Shards(tmp_path / "*-0.tar"))), torch.from_numpy(BYTES[0]))
    with pytest.raises(ValueError, match=r"sample /0000 of the shards has no .cls for a label"):
        next(iter(Shards(tmp_path / "*-0.tar", labels=True)))
    (tmp_path / "part-0.tar").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"cannot read the shard .*part-0.tar"):
        next(iter(Shards(tmp_path / "*.tar")))


def test_no_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no files .*check the path"):
        Shards(str(tmp_path / "part-*.tar"))


def test_the_command_line_reads_large_data_a_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "_LARGE", 100)
    np.save(tmp_path / "x.npy", BYTES.reshape(24, -1)[:, :3].astype(np.float32))
    words = ["--steps", 2, "--batch-size", 4, "--device", "cpu", "--quiet", "--data"]
    command("train", *words, tmp_path / "x.npy", "--out", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["count"] == 24
    assert config["model"]["normalizer"] is not None
    capsys.readouterr()
    said = refuse(
        capsys,
        *("train", *words, tmp_path / "x.npy", "--out", tmp_path / "other", "--held-out", 3),
    )
    assert "--held-out is for a folder" in said
    folder = write_folder(tmp_path / "pictures")
    found = large.large_data(
        str(folder), image_size=None, raw=False, labels=True, held_out=4, seed=0
    )
    assert found is not None
    assert (len(found.data), len(found.held_out)) == (20, 4)
    assert found.few.x.shape == (20, 3, 8, 8)
    assert found.few.classes == ("class0", "class1")
    assert (found.few.low, found.few.high, found.few.is_image) == (0.0, 255.0, True)
