"""Classes and parts read off names."""

import pytest

from shaketable.core.errors import DataError
from shaketable.data.archives import Listing
from shaketable.data.layout import Labelled, layout


def _listing(*files: str, folders: tuple[str, ...] = ()) -> Listing:
    parents = {"/".join(name.split("/")[:i]) for name in files for i in range(1, name.count("/") + 1)}
    return Listing(tuple(sorted(files)), tuple(sorted(parents | set(folders))))


def test_a_folder_for_each_class():
    found = layout(_listing("dog/2.jpg", "cat/deep/1.PNG", "cat/notes.txt", "dog/1.webp"), "x")
    assert found.classes == ("cat", "dog")
    assert found.parts == {None: Labelled(("cat/deep/1.PNG", "dog/1.webp", "dog/2.jpg"), (0, 1, 1))}


def test_classes_are_in_the_order_of_their_texts():
    assert layout(_listing("10/a.png", "2/a.png", "1/a.png"), "x").classes == ("1", "10", "2")


def test_train_validation_and_test():
    found = layout(_listing("train/a/1.png", "train/b/2.png", "val/b/3.png", "test/a/4.png"), "x")
    assert list(found.parts) == ["train", "validation", "test"]
    assert found.classes == ("a", "b")
    assert found.parts["validation"] == Labelled(("val/b/3.png",), (1,))
    assert found.parts["test"] == Labelled(("test/a/4.png",), (0,))


def test_a_val_alone_is_the_test_part_and_an_unlabelled_test_is_left_out():
    found = layout(_listing("Train/a/1.png", "Train/b/2.png", "val/b/3.png", "test/0001.png", "test/0002.png"), "x")
    assert list(found.parts) == ["train", "test"]
    assert found.parts["test"] == Labelled(("val/b/3.png",), (1,))


def test_a_test_part_alone():
    found = layout(_listing("test/b/1.png", "test/a/2.png"), "x")
    assert list(found.parts) == ["test"]
    assert found.classes == ("a", "b")


@pytest.mark.parametrize("root", ["", "set/", "some/where/"])
def test_a_folder_around_everything_is_seen_through(root):
    found = layout(_listing(f"{root}train/a/1.png", f"{root}train/b/2.png", f"{root}test/a/3.png"), "x")
    assert list(found.parts) == ["train", "test"]
    assert found.parts["train"].members == (f"{root}train/a/1.png", f"{root}train/b/2.png")
    assert layout(_listing(f"{root}a/1.png", f"{root}b/1.png"), "x").classes == ("a", "b")


def test_a_lone_class_folder_is_no_root():
    assert layout(_listing("cat/1.png", "cat/2.png"), "x").classes == ("cat",)


def test_flat_names_with_class_indices():
    found = layout(_listing("0003_n01491361_tiger_shark.jpg", "0000_n01440764_tench.jpg", "notes.txt"), "x")
    assert len(found.classes) == 1000
    assert found.classes[:4] == ("tench", "class 1", "class 2", "tiger shark")
    assert found.parts[None].labels == (0, 3)
    assert layout(_listing("all/0003_n01491361_tiger_shark.jpg"), "x").parts[None].labels == (3,)
    assert len(layout(_listing("1200_n01491361_x.jpg"), "x").classes) == 1201


def test_a_folder_named_like_an_image_is_skipped():
    assert layout(_listing("a/1.png", "b/1.png", "cover.jpg/cover.jpg"), "x").classes == ("a", "b")


BAD = {
    "nothing": (_listing(), "0 files"),
    "no images": (_listing("a/1.txt", "b/2.csv"), "2 files"),
    "loose images": (_listing("1.png", "2.png"), "2 images in no class folder"),
    "an image beside the classes": (_listing("a/1.png", "b/2.png", "cover.png"), "cover"),
    "an image beside the parts": (_listing("train/a/1.png", "test/a/2.png", "cover.png"), "cover"),
    "images beside the classes of a part": (_listing("train/a/1.png", "train/2.png"), "beside the class folders"),
    "unlabelled parts only": (_listing("train/1.png", "test/2.png"), "class folders"),
    "an empty class": (_listing("a/1.png", "c/2.png", folders=("b",)), "'b'"),
    "an empty training class": (_listing("train/a/1.png", "train/c/2.png", folders=("train/b",)), "'b'"),
    "a new class in the test part": (_listing("train/a/1.png", "test/b/2.png"), "'b'"),
    "two folders for a part": (_listing("val/a/1.png", "validation/a/2.png"), "two"),
    "an index with two wnids": (_listing("0001_n00000001_x.jpg", "0001_n00000002_y.jpg"), "n00000002"),
}


@pytest.mark.parametrize("case", BAD)
def test_names_that_do_not_tell_are_refused(case):
    listing, word = BAD[case]
    with pytest.raises(DataError, match=word):
        layout(listing, "the source")
