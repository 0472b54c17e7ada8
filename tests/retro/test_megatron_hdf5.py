import json
import shutil

import h5py
import numpy as np
import pytest
import tokenizers

from mt.core import config, manifest
from mt.core.config import UserError
from mt.indexed.neighbors import sample_documents
from mt.retro import build, embed, row_blocks
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.megatron_hdf5 import ExportHdf5Config, export_hdf5
from mt.retro.sample_neighbors import NeighborsConfig, neighbors, rebuild_dataset
from mt.train.checkpoint.huggingface import minilm_directory

LENGTH = 16


class QuickEmbedder(embed.Embedder):
    """Counts letters instead of running a model; its tokenizer is that of the default embedder."""

    def __call__(self, pieces):
        return np.array(
            [[piece.count(chr(97 + i)) for i in range(26)] for piece in pieces], np.float32
        ).reshape(-1, 26)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.dimension = 26


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for module in (build, row_blocks, embed):
        monkeypatch.setattr(module, "Embedder", QuickEmbedder)


TEXTS = [f"document {i}: " + "the river falls, a garden grows! " * (1 + i % 4) for i in range(12)]


def settings(tmp_path, **more):
    given = {
        "data_path": [str(tmp_path / "a"), str(tmp_path / "b")],
        "output": str(tmp_path / "db"),
        "tokenizer_type": "ByteLevelTokenizer",
        "chunk_length": LENGTH,
        "num_neighbors": 2,
        "workers": 1,
    }
    return config.build(BuildDbConfig, ("test", given | more))


def by_the_specification(path):
    """db/merged/train.hdf5 by a loop over documents: remove one end of document, cut, tokenize for BERT."""
    chunks, offsets = [], []
    words = tokenizers.BertWordPieceTokenizer(str(minilm_directory() / "vocab.txt"))
    for dataset, texts in enumerate((TEXTS[:7], TEXTS[7:])):
        for document, text in enumerate(texts):
            for start in range(0, len(text), LENGTH):
                end = min(start + LENGTH, len(text))
                chunks.append(
                    (
                        dataset,
                        document,
                        start,
                        end,
                        len(words.encode(text[start:end], add_special_tokens=False).ids),
                    )
                )
            offsets.append((dataset, document, len(chunks)))
    with h5py.File(path, "w") as file:
        file.create_dataset("chunks", data=np.array(chunks, np.uint32))
        file.create_dataset("doc_offsets", data=np.array(offsets, np.uint64))
        file.create_dataset("n_written", data=np.array([len(chunks)], np.uint64))


def test_an_exported_database_follows_the_specification_and_can_be_imported(write_texts, tmp_path):
    write_texts("a", TEXTS[:7])
    write_texts("b", TEXTS[7:])
    build_db(settings(tmp_path))
    given = {
        "data_path": ["1", str(tmp_path / "a"), "2", str(tmp_path / "b")],
        "split": "1",
        "seq_length": 32,
        "db": str(tmp_path / "db"),
        "output": str(tmp_path / "near"),
        "train_samples": 20,
        "workers": 1,
    }
    neighbors(config.build(NeighborsConfig, ("test", given)))
    export_hdf5(
        ExportHdf5Config(
            db=str(tmp_path / "db"), neighbors=str(tmp_path / "near"), output=str(tmp_path / "project")
        )
    )
    by_the_specification(tmp_path / "expected.hdf5")
    merged = tmp_path / "project" / "db" / "merged" / "train.hdf5"
    with h5py.File(merged) as ours, h5py.File(tmp_path / "expected.hdf5") as expected:
        for name in ("chunks", "doc_offsets", "n_written"):
            assert ours[name].dtype == expected[name].dtype
            assert (ours[name][:] == expected[name][:]).all()
    ids = np.load(tmp_path / "near" / "train.npy")
    rows = len(ids) * 2
    (folder,) = (tmp_path / "project" / "query").glob("train_*")
    with h5py.File(folder / f"000-0{rows}.hdf5") as file:
        assert (file["neighbors"][:] == ids.reshape(rows, -1)).all()
        assert file["neighbors"].dtype == np.int64
    build_db(settings(tmp_path, output=str(tmp_path / "again"), chunks_hdf5=str(tmp_path / "expected.hdf5")))
    for name in ("chunks.npy", "index.faiss", "neighbors.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "db" / name).read_bytes()

    # in several blocks, as in a long run
    with h5py.File(folder / f"000-0{rows}.hdf5") as file:
        found = file["neighbors"][:]
    (folder / f"000-0{rows}.hdf5").unlink()
    rows -= 2  # the 21st sample of the blend, for which Megatron-LM does not search
    for start, stop in ((0, 13), (13, rows)):
        with h5py.File(folder / f"{start:03d}-{stop:03d}.hdf5", "w") as file:
            file.create_dataset("neighbors", data=found[start:stop])
    taken = given | {
        "db": str(tmp_path / "again"),
        "project_hdf5": str(tmp_path / "project"),
        "output": str(tmp_path / "taken"),
    }
    made = neighbors(config.build(NeighborsConfig, ("test", taken)))
    both = [np.load(tmp_path / name / "train.npy") for name in ("taken", "near")]
    assert (both[0][:20] == both[1][:20]).all()
    assert both[0].shape == both[1].shape
    assert (both[0][20] == -1).all()
    assert made["samples"]["splits"] == manifest.manifest_of(tmp_path / "near")["samples"]["splits"]
    for wrong, message in (
        ({"train_samples": 25}, "has the neighbours of 40 chunks, and the requested train samples have 50"),
        ({"num_neighbors": 21}, "has 20 neighbours of a chunk; give --num-neighbors 20 or fewer"),
        ({"seed": 5}, "a neighbour of a document of its own, so it was made for other samples"),
        ({"valid_samples": 3, "split": "80,20"}, "has no neighbours of valid in retro_neighbor_dirs"),
    ):
        with pytest.raises(UserError, match=message):
            neighbors(
                config.build(NeighborsConfig, ("test", taken | wrong | {"output": str(tmp_path / "wrong")}))
            )
    dataset, table = rebuild_dataset(made["draws"], "train"), np.load(tmp_path / "again" / "chunks.npy")
    for name, row in (("000-013", 0), ("000-013", 12), ("013-040", 0), ("013-040", 26)):
        sample = (row + int(name[:3])) // 2  # a sample has two chunks; sample 6 is in both blocks
        pair, documents = sample_documents(dataset, sample)
        number = "ab".index(pair.prefix[-1])
        (own, *_) = np.flatnonzero((table["dataset"] == number) & (table["document"] == documents[-1]))
        with h5py.File(folder / f"{name}.hdf5", "r+") as file:
            kept, file["neighbors"][row, 0] = file["neighbors"][row, 0], own
        with pytest.raises(UserError, match=f"gives sample {sample} a neighbour of a document of its own"):
            neighbors(config.build(NeighborsConfig, ("test", taken | {"output": str(tmp_path / "wrong")})))
        with h5py.File(folder / f"{name}.hdf5", "r+") as file:
            file["neighbors"][row, 0] = kept
    (folder / "old-notes.hdf5").write_bytes(b"none of ours")
    for text, message in (
        ("[]", "must be a mapping"),
        ('{"retro_neighbor_dirs": 3}', "must be a mapping"),
        ("{", "not valid JSON"),
        (None, r"has no config\.json"),
    ):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "config.json").unlink(missing_ok=True)
        if text is not None:
            (other / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            neighbors(
                config.build(
                    NeighborsConfig,
                    ("test", taken | {"project_hdf5": str(other), "output": str(tmp_path / "wrong")}),
                )
            )
    with h5py.File(folder / "000-013.hdf5", "r+") as file:
        whole = file["neighbors"][:]
        del file["neighbors"]
        file.create_dataset("neighbors", data=whole.astype(np.float32))
    with pytest.raises(UserError, match="has values of type float32, not integers"):
        neighbors(config.build(NeighborsConfig, ("test", taken | {"output": str(tmp_path / "wrong")})))
    with h5py.File(folder / "000-013.hdf5", "r+") as file:
        del file["neighbors"]
        file.create_dataset("neighbors", data=whole)
    with h5py.File(folder / f"013-0{rows}.hdf5", "r+") as file:
        file["neighbors"][3, 1] = 10_000
    with pytest.raises(UserError, match="has chunk 10000, and the database has"):
        neighbors(config.build(NeighborsConfig, ("test", taken | {"output": str(tmp_path / "wrong")})))
    (folder / "000-013.hdf5").unlink()
    with pytest.raises(UserError, match=r"the block before 013-040\.hdf5 is missing; fetch it again"):
        neighbors(config.build(NeighborsConfig, ("test", taken | {"output": str(tmp_path / "wrong")})))


def test_files_of_other_data_and_truncated_files_are_refused(write_texts, write_data, tmp_path):
    write_texts("a", TEXTS[:7])
    write_texts("b", TEXTS[7:])
    by_the_specification(tmp_path / "t.hdf5")
    with pytest.raises(
        UserError, match="has chunks of 16 tokens, more than chunk_length = 8; give --chunk-length 16"
    ):
        build_db(settings(tmp_path, chunks_hdf5=str(tmp_path / "t.hdf5"), chunk_length=8))
    with pytest.raises(UserError, match="has chunks that are not in --data-path"):
        build_db(
            settings(
                tmp_path,
                chunks_hdf5=str(tmp_path / "t.hdf5"),
                data_path=[str(tmp_path / "b"), str(tmp_path / "a")],
            )
        )
    (tmp_path / "cut.hdf5").write_bytes((tmp_path / "t.hdf5").read_bytes()[:900])
    with pytest.raises(UserError, match=r"cut\.hdf5: is not a whole merged/train\.hdf5"):
        build_db(settings(tmp_path, chunks_hdf5=str(tmp_path / "cut.hdf5")))
    with h5py.File(tmp_path / "t.hdf5", "r+") as file:
        file["n_written"][0] = 5
    with pytest.raises(UserError, match="is truncated: writing it was interrupted; make it again"):
        build_db(settings(tmp_path, chunks_hdf5=str(tmp_path / "t.hdf5")))


def _linked(file):
    file["chunks"] = h5py.ExternalLink("other.hdf5", "chunks")


def _soft(file):
    file["elsewhere"] = np.zeros((1, 5), np.uint32)
    file["chunks"] = h5py.SoftLink("/elsewhere")


def _external(file):
    file.create_dataset("chunks", (1, 5), "u4", external=[("/etc/hostname", 0, 20)])


def _virtual(file):
    layout = h5py.VirtualLayout((1, 5), "u4")
    layout[:] = h5py.VirtualSource("other.hdf5", "chunks", (1, 5))
    file.create_virtual_dataset("chunks", layout)


def _declared(file):
    file.create_dataset("chunks", (10**15, 5), "u4", chunks=(1000, 5))


def _bomb(file):
    file.create_dataset("chunks", (10**8, 5), "u4", chunks=(10**8, 5), compression="gzip")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_linked, "chunks is missing or a link"),
        (_soft, "chunks is missing or a link"),
        (_external, "chunks is no array, or lies in another file"),
        (_virtual, "chunks is no array, or lies in another file"),
        (_declared, r"has 1,000,000,000,000,000 chunks, and --data-path has [\d,]+ tokens"),
        (_bomb, "chunks is compressed in pieces of more than 268,435,456 bytes"),
        (lambda file: file.create_group("chunks"), "chunks is no array"),
        (lambda file: file.create_dataset("chunks", data=1.5), "values of type float64, not integers"),
        (lambda file: file.create_dataset("chunks", data=[1]), r"the shape \(1,\), not \(any, 5\)"),
        (lambda file: file.create_dataset("chunks", data=np.array([[-1, 0, 0, 9, 1]])), "not in --data-path"),
        (lambda file: file.create_dataset("chunks", data=np.array([[0, -1, 0, 9, 1]])), "not in --data-path"),
        (lambda file: file.create_dataset("chunks", data=np.array([[0, 0, -9, 0, 1]])), "not in --data-path"),
    ],
)
def test_a_file_of_a_stranger_reads_no_other_file_and_floods_nothing(write_texts, tmp_path, make, message):
    for name, some in (("a", TEXTS[:7]), ("b", TEXTS[7:])):
        write_texts(name, some)
    by_the_specification(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        make(file)
        rows = (
            len(file["chunks"])
            if isinstance(file.get("chunks"), h5py.Dataset) and file["chunks"].shape
            else 1
        )
        file["n_written"] = np.array([rows], np.uint64)
    with pytest.raises(UserError, match=message):
        build_db(settings(tmp_path, chunks_hdf5=str(tmp_path / "t.hdf5")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda splits: {"../../near/train": splits["train"]}, "must be some of train, valid, test"),
        (lambda splits: {}, "must be some of train, valid, test"),
        (
            lambda splits: {"train": {**splits["train"], "order": "/../../../x"}},
            "order = '.*': must be a digest",
        ),
    ],
)
def test_names_in_the_manifest_of_neighbours_lead_nowhere(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy/near/manifest.json"
    tree = json.loads(file.read_text())
    tree["samples"]["splits"] = change(tree["samples"]["splits"])
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        export_hdf5(
            ExportHdf5Config(
                db=str(tmp_path / "copy/db"),
                neighbors=str(tmp_path / "copy/near"),
                output=str(tmp_path / "project"),
            )
        )
