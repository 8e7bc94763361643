"""Image tasks from idx, .npz and picture files: what is read, and how bad files are refused."""

import gzip
import importlib.util

import numpy as np
import pytest
from image_problem import KINDS, idx_bytes, shapes, write_split, write_task
from refusals import error
from scipy.signal import correlate

from w2s_jax.cli.main import main
from w2s_jax.data.documents import pixel_arrays
from w2s_jax.data.feature_sources import FEATURES, find_features, register_features
from w2s_jax.data.loading import load
from w2s_jax.data.tokenize import tokenize

HAS_PILLOW = importlib.util.find_spec("PIL") is not None
pillow = pytest.mark.skipif(not HAS_PILLOW, reason="Pillow is not installed")
KINDS_HERE = [pytest.param(k, marks=pillow if k == "png" else ()) for k in KINDS]


def by_pixels(loaded, split):
    """Pixels -> name of the class, of the documents of a split."""
    names = loaded.task.classes or ("0", "1")
    return {d.tokens: names[d.label] for d in loaded.documents[split]}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS_HERE)
def test_every_format_gives_the_pixels_and_labels_that_were_written(tmp_path, kind, channels):
    write_task(tmp_path, kind=kind, train=20, test=10, channels=channels)
    images, labels = shapes(30, channels=channels)
    loaded = load("shapes", data_dir=str(tmp_path))
    assert loaded.task.image.shape == (8, 8, channels)
    prefix = "class" if kind == "png" else ""
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        wanted = {
            image.tobytes(): f"{prefix}{label}"
            for image, label in zip(images[part], labels[part], strict=True)
        }
        assert by_pixels(loaded, split) == wanted
        documents = loaded.documents[split]
        tokens, _ = tokenize(documents, None, max_length=None, overlong="error")
        assert tokens.tokens_T.tobytes() == b"".join(
            np.frombuffer(d.tokens, np.uint8).astype(np.int32).tobytes() for d in documents
        )
        arrays = pixel_arrays(documents, loaded.task.image)
        assert arrays.dtype == np.uint8 and arrays.shape == (len(documents), 8, 8, channels)
        assert {a.tobytes() for a in arrays} == set(wanted)


def test_ids_do_not_depend_on_the_format_of_the_file_or_its_order(tmp_path):
    images, labels = shapes(12)
    for folder, kind, order in (("a", "npz", 1), ("b", "idx.gz", -1)):
        for split in ("train", "test"):
            write_split(tmp_path / folder / "shapes", split, images[::order], labels[::order], kind)
    a, b = (
        {
            d.tokens: (d.id, d.group)
            for d in load("shapes", data_dir=str(tmp_path / f)).documents["train"]
        }
        for f in "ab"
    )
    assert a == b and len({id_ for id_, _ in a.values()}) == 12


def test_equal_images_are_of_one_group_and_dots_in_names_are_accepted(tmp_path):
    images, labels = shapes(8)
    images[1] = images[0]
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "train-images.idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "train-labels.idx1-ubyte").write_bytes(idx_bytes(labels))
    documents = load("shapes", data_dir=str(tmp_path)).documents["train"]
    groups = [d.group for d in documents]
    assert groups[0] == groups[1] and len(set(groups)) == 7
    assert documents[0].id != documents[1].id


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_records_have_ids_by_which_features_from_elsewhere_are_found(tmp_path, kind):
    write_task(tmp_path, kind=kind, train=4, test=2)
    documents = load("shapes", data_dir=str(tmp_path), keep=("id",)).documents
    images = shapes(6)[0]
    found = {d.meta["id"]: d.tokens for own in documents.values() for d in own}
    names = (
        [f"train/class{n % 2}/{n:04}.png" for n in range(4)]
        + [f"test/class{n % 2}/{n:04}.png" for n in range(2)]
        if kind == "png"
        else [*(f"train/{n}" for n in range(4)), "test/0", "test/1"]
    )
    assert found == {name: image.tobytes() for name, image in zip(names, images, strict=True)}


def test_digits_are_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits

    loaded = load("digits")
    data = load_digits()
    assert loaded.task.image.shape == (8, 8, 1)
    for split in ("test", "pretrain"):
        documents = [d for d in loaded.documents[split] if d.meta.get("shift", (0, 0)) == (0, 0)]
        arrays = pixel_arrays(documents, loaded.task.image)[..., 0]
        np.testing.assert_array_equal(arrays, data.images[[d.meta["index"] for d in documents]])


def test_classes_are_found_or_given_and_names_of_fashion_mnist_are_known(tmp_path):
    images, _ = shapes(20)
    labels = np.arange(20) % 10
    for name in ("mine", "fashion_mnist"):
        for split in ("train", "test"):
            write_split(tmp_path / name, split, images, labels.astype(np.uint8), "idx")
    assert load("mine", data_dir=str(tmp_path)).task.classes == tuple("0123456789")
    named = load("mine", data_dir=str(tmp_path), classes=tuple("abcdefghij"))
    assert named.task.classes == tuple("abcdefghij")
    assert [d.label for d in named.documents["test"]] == labels.tolist()
    # Images of 28 x 28 pixels.
    text = error(load, "fashion_mnist", data_dir=str(tmp_path))
    assert "8 x 8 pixels, 1 channel; all images of a task have one shape, here 28 x 28" in text
    big, _ = shapes(20, side=28)
    for split in ("train", "test"):
        write_split(tmp_path / "fashion_mnist", split, big, labels.astype(np.uint8), "idx")
    fashion = load("fashion_mnist", data_dir=str(tmp_path))
    assert [d.label for d in fashion.documents["test"]] == labels.tolist()
    assert fashion.task.classes[9] == "Ankle boot" and fashion.source == "files"


def test_without_files_fashion_mnist_says_which_and_where_from(tmp_path):
    text = error(load, "fashion_mnist", data_dir=str(tmp_path))
    assert text.startswith("task.data_dir: ") and str(tmp_path / "fashion_mnist") in text
    for part in ("train-images-idx3-ubyte", "github.com/zalandoresearch/fashion-mnist"):
        assert part in text
    assert "hub" in error(load, "fashion_mnist", "hub", str(tmp_path))


# --- bad files ------------------------------------------------------------------------------------


def damaged(folder, kind):
    """Write the task 'shapes', damaged in one way."""
    images, labels = shapes(10)
    file = folder / "train-images-idx3-ubyte"
    write_split(folder, "train", images, labels, "idx")
    whole = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(whole[:-7])
    elif kind == "header":
        file.write_bytes(whole[:9])
    elif kind == "longer":
        file.write_bytes(whole + b"\0\0")
    elif kind == "magic":
        file.write_bytes(b"GIF8" + whole[4:])
    elif kind == "type":
        file.write_bytes(b"\0\0\x0d\x03" + whole[4:])
    elif kind == "huge":
        file.write_bytes(whole[:4] + b"\xff" * 12 + whole[16:])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "gzip":
        file.unlink()
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(whole)[:-20])
    elif kind == "count":
        (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:-1]))
    elif kind == "no labels":
        (folder / "train-labels-idx1-ubyte").unlink()
    elif kind == "two sources":
        write_split(folder, "train", images, labels, "npz")
    elif kind == "swapped":
        (folder / "train-labels-idx1-ubyte").write_bytes(whole)
    elif kind == "no image":
        file.write_bytes(idx_bytes(images[:0]))
        (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:0]))
    elif kind == "no pixels":
        file.write_bytes(idx_bytes(images[:, :0]))


@pytest.mark.parametrize(
    "kind,parts",
    [
        ("truncated", ["truncated: 649 bytes", "[10, 8, 8], which takes 656"]),
        ("header", ["truncated: 9 bytes"]),
        ("longer", ["too long: 658 bytes"]),
        ("magic", ["is not in idx format", "47 49 46 38"]),
        ("type", ["type 0x0d with 3 axes", "0x08"]),
        ("huge", ["truncated"]),
        ("empty", ["is not in idx format", "an empty file"]),
        ("gzip", ["broken or truncated gzip"]),
        ("count", ["10 images, but 9 labels (train-labels-idx1-ubyte)"]),
        ("no labels", ["no labels for these images", "train-labels-idx1-ubyte.gz"]),
        ("two sources", ["two sources of images for split 'train'", "train.npz"]),
        ("swapped", ["train-labels-idx1-ubyte", "3 axes", "with 1"]),
        ("no image", ["holds no images"]),
        ("no pixels", ["0 x 8 pixels", "has no pixels"]),
    ],
)
def test_bad_idx_files_are_named(tmp_path, kind, parts):
    damaged(tmp_path / "shapes", kind)
    text = error(load, "shapes", data_dir=str(tmp_path))
    assert str(tmp_path / "shapes") in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    "arrays,parts",
    [
        ({"x": shapes(4)[0]}, ["has no array 'images'", "x"]),
        ({"images": shapes(4)[0] / 255, "labels": np.arange(4)}, ["float64 [4, 8, 8]", "uint8"]),
        ({"images": shapes(4)[0][0], "labels": np.arange(4)}, ["uint8 [8, 8]", "[N, H, W]"]),
        ({"images": shapes(4)[0], "labels": np.eye(4)}, ["`labels` is float64 [4, 4]"]),
        ({"images": shapes(4)[0], "labels": np.array([{}] * 4)}, ["not a readable .npz", "pickle"]),
        ({"images": shapes(4)[0], "labels": np.arange(3)}, ["4 images, but 3 labels"]),
        (b"PK\x03\x04 no archive", ["not a readable .npz"]),
        (b"text", ["not a readable .npz"]),
        (b"", ["not a readable .npz"]),
    ],
)
def test_bad_npz_files_are_named(tmp_path, arrays, parts):
    (tmp_path / "shapes").mkdir()
    path = tmp_path / "shapes" / "train.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    text = error(load, "shapes", data_dir=str(tmp_path))
    assert text.startswith(f"{path}: ")
    for part in parts:
        assert part in text, text


def test_npz_files_without_labels_may_be_the_unlabelled_pool_alone(tmp_path):
    images, labels = shapes(6)
    (tmp_path / "shapes").mkdir()
    np.savez(tmp_path / "shapes" / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "shapes" / "extra.npz", images=images[:4])
    found = load("shapes", data_dir=str(tmp_path), used=("train",), unlabelled="extra")
    pool = found.documents["unlabelled"]
    assert [d.tokens for d in pool] == [image.tobytes() for image in images[:4]]
    assert all(d.label is None for d in pool)
    np.savez(tmp_path / "shapes" / "train.npz", images=images)
    text = error(load, "shapes", data_dir=str(tmp_path))
    assert "train.npz, image 1: field 'label'" in text and "this one is unlabelled" in text


def test_npz_labels_may_be_names(tmp_path):
    images, _ = shapes(6)
    write_split(tmp_path / "shapes", "train", images, np.array(["b", "a", "c"] * 2), "npz")
    loaded = load("shapes", data_dir=str(tmp_path))
    assert loaded.task.classes == ("a", "b", "c")
    assert [d.label for d in loaded.documents["train"]] == [1, 0, 2] * 2


def write_pictures(folder, change=None):
    """Write two classes of pictures as train and test; `change` spoils the folder of class0."""
    images, labels = shapes(8)
    for split in ("train", "test"):
        write_split(folder, split, images, labels, "png")
    if change is not None:
        change(folder / "train" / "class0")


def _text(folder):
    (folder / "note.png").write_text("this is no picture")


def _cut(folder):
    path = folder / "0000.png"
    path.write_bytes(path.read_bytes()[:60])


def _other_size(folder):
    from PIL import Image

    Image.fromarray(shapes(1, side=9)[0][0]).save(folder / "9.png")


def _colour(folder):
    from PIL import Image

    Image.fromarray(shapes(1, channels=3)[0][0]).save(folder / "rgb.png")


def _alpha(folder):
    from PIL import Image

    Image.new("RGBA", (8, 8)).save(folder / "alpha.png")


def _deep(folder):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")


def _gif(folder):
    from PIL import Image

    Image.new("L", (8, 8)).save(folder / "really_a_gif.png", format="GIF")


def _no_picture(folder):
    for path in folder.iterdir():
        path.rename(path.with_suffix(".bmp"))


@pillow
@pytest.mark.parametrize(
    "change,parts",
    [
        (_text, ["class0/note.png: is not a PNG or JPEG image"]),
        (_gif, ["class0/really_a_gif.png: is not a PNG or JPEG image"]),
        (_cut, ["class0/0000.png: cannot be read as an image"]),
        (_other_size, ["class0/9.png: 9 x 9 pixels", "here 8 x 8", "task.image_size"]),
        (_colour, ["class0/rgb.png: 8 x 8 pixels, 3 channels", "here 8 x 8 pixels, 1 channel"]),
        (_alpha, ["class0/alpha.png: the picture is of mode 'RGBA'", "greyscale or RGB"]),
        (_deep, ["class0/deep.png: the picture is of mode 'I;16'", "8 bits"]),
        (_no_picture, ["class0: the folder of a class has no .png", "0000.bmp"]),
    ],
)
def test_bad_pictures_are_named(tmp_path, change, parts):
    write_pictures(tmp_path / "shapes", change)
    text = error(load, "shapes", data_dir=str(tmp_path))
    assert str(tmp_path / "shapes" / "train") in text
    for part in parts:
        assert part in text, text


@pillow
def test_pictures_are_resized_and_turned_as_they_are_shown(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for label, (height, width) in enumerate(((20, 30), (64, 16))):
            path = tmp_path / "photos" / split / f"c{label}" / "a.jpg"
            path.parent.mkdir(parents=True)
            half = np.zeros((height, width, 3), np.uint8)
            half[:, : width // 2, 0] = 200
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned clockwise: the left half is then above
            Image.fromarray(half).save(path, exif=exif, quality=95)
    assert "task.image_size" in error(load, "photos", data_dir=str(tmp_path))
    loaded = load("photos", data_dir=str(tmp_path), image_size=10)
    arrays = pixel_arrays(loaded.documents["train"], loaded.task.image)
    assert arrays.shape == (2, 10, 10, 3)
    means = arrays[..., 0].astype(float).mean(2)
    assert (means[:, :4] > 180).all() and (means[:, 6:] < 20).all()


def test_image_size_is_refused_where_nothing_is_resized(tmp_path):
    write_task(tmp_path, kind="npz", train=4, test=4)
    for name in ("shapes", "digits"):
        text = error(load, name, data_dir=str(tmp_path), image_size=4)
        assert text.startswith("task.image_size: 4") and "None" in text


@pillow
def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    write_pictures(tmp_path / "shapes")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "PIL" else find_spec(name)
    )
    assert "pip install 'w2s_jax[images]'" in error(load, "shapes", data_dir=str(tmp_path))


# --- functions and commands -----------------------------------------------------------------------


@pytest.fixture
def brightness():
    seen = []

    def function(images):
        seen.append(images)
        return images.reshape(len(images), -1).mean(1, keepdims=True)

    register_features("brightness", function, version=1, images=True)
    yield seen
    FEATURES.pop("brightness")


def test_a_function_gets_the_images_as_an_array(tmp_path, brightness):
    write_task(tmp_path, train=6, test=4, channels=3)
    loaded = load("shapes", data_dir=str(tmp_path))
    source = find_features("features:brightness").reading(loaded.task.image)
    bound = source.bind(loaded.documents)
    rows = bound.read("train")
    images = shapes(10, channels=3)[0][:6]
    assert brightness[-1].dtype == np.uint8
    np.testing.assert_array_equal(brightness[-1], images)
    np.testing.assert_allclose(rows[:, 0, 0], images.mean((1, 2, 3)), rtol=1e-6)
    text = error(find_features("features:brightness").reading, None)
    assert text == "features:brightness reads images"


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3)])
def test_random_convolutions_equal_scipys(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    got = FEATURES["random_convolutions"].function(images)
    assert got.shape == (3, 4 * 4 * 64) and got.dtype == np.float32
    filters = np.random.default_rng(0).normal(size=(9, shape[2], 64)).astype(np.float32)
    filters -= filters.mean(0)
    kernels = filters.reshape(3, 3, shape[2], 64).astype(np.float64)
    image = images[1].astype(np.float64)
    image = (image - image.mean()) / image.std()
    for f in (0, 17, 63):
        maps = [correlate(image[..., c], kernels[..., c, f], "same") for c in range(shape[2])]
        response = np.maximum(sum(maps), 0)
        rows, columns = (np.arange(5) * size // 4 for size in shape[:2])
        for y, x in ((0, 0), (1, 3), (3, 2)):
            cell = response[rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
            assert got.reshape(3, 4, 4, 64)[1, y, x, f] == pytest.approx(cell.max(), abs=1e-4)


def test_random_convolutions_of_a_document_do_not_depend_on_the_others(monkeypatch):
    function = FEATURES["random_convolutions"].function
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    images[3] = 7  # without contrast
    together = function(images)
    assert np.isfinite(together).all() and not together[3].any()
    monkeypatch.setattr("w2s_jax.data.random_convolutions._BLOCK", 8 * 8 * 64 * 2)
    np.testing.assert_allclose(function(images), together, atol=1e-5)
    np.testing.assert_allclose(function(images[1:2]), together[1:2], atol=1e-5)


def test_the_data_commands_show_an_image_task(tmp_path, capsys):
    write_task(tmp_path, train=6, test=4)
    for command in ("show", "check"):
        assert main(["data", command, "shapes", f"--data_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "(64 tokens)" in out and "train.npz" in out
    assert main(["data", "list", "fashion_mnist"]) == 0
    assert "train-images-idx3-ubyte" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "prepare", "shapes", f"--data_dir={tmp_path}", f"--to={tmp_path}/o"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "field 'image'" in err
