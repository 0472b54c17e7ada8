"""`mt retro verify`: a changed byte in any file is noticed, and so are values that the digests agree with."""

import json
import shutil

import numpy as np
import pytest

from mt.core import manifest
from mt.core.config import UserError
from mt.retro.verify import VerifyRetrievalConfig, verify


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def check(directory):
    return verify(VerifyRetrievalConfig(directory=str(directory)))


def files(directory):
    return [o["name"] for o in json.loads((directory / "manifest.json").read_text())["outputs"]]


@pytest.mark.parametrize("name", ["db", "near"])
def test_a_changed_byte_of_any_file_is_noticed(name, copied):
    root = copied / name
    found = check(root)
    assert found["files"] == files(root)
    assert f"the digests of {len(files(root))} files" in found["text"]
    for file in (root / n for n in files(root)):
        data = file.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(
                UserError, match=rf"{file}: its bytes are not those that `mt retro \S+` wrote"
            ):
                check(root)
        file.write_bytes(data[:-1])
        with pytest.raises(UserError, match=f"{file}: has .* bytes where the manifest records"):
            check(root)
        file.write_bytes(data)
    check(root)


def sealed_again(root, name):
    """Tells the present digest of a file in the manifest, as a stranger may."""
    tree = json.loads((root / "manifest.json").read_text())
    tree["outputs"] = [
        {**o, **manifest.record(root / name, root)} if o["name"] == name else o for o in tree["outputs"]
    ]
    (root / "manifest.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "file", "column", "value", "message"),
    [
        ("db", "chunks.npy", "dataset", 2, "of dataset 2, which the database's data do not have"),
        ("db", "chunks.npy", "document", 4000, "of document 4,000 of dataset"),
        ("db", "chunks.npy", "end", 9999, "tokens .* to 9,999 of document"),
        ("db", "neighbors.npy", None, 10**6, r"neighbors.npy: chunk 1000000 is a neighbour"),
        ("db", "neighbors.npy", None, -2, "chunk -2 is a neighbour"),
        ("near", "valid.npy", None, 10**6, "valid.npy: chunk 1000000 is a neighbour"),
    ],
)
def test_a_value_that_does_not_exist_is_noticed_where_the_digest_is_right(
    name, file, column, value, message, copied
):
    root = copied / name
    array = np.load(root / file)
    (array[column] if column else array)[-1] = value
    np.save(root / file, array)
    sealed_again(root, file)
    with pytest.raises(UserError, match=message):
        check(root)


def test_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="is neither a finished retrieval database, nor"):
        check(tmp_path)
    with pytest.raises(UserError, match="is neither a finished retrieval database, nor"):
        check(tmp_path / "none")
