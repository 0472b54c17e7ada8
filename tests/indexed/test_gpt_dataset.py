"""Sample indices and samples, compared with Megatron-LM's golden numbers and megatron-core's GPTDataset."""

import hashlib
import multiprocessing
import pickle

import numpy as np
import pytest

from mt.core import config
from mt.indexed import blend
from mt.indexed.build_indices import IndexConfig, index
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.gpt_dataset import PAD, DataConfig, GPTDataset, build_datasets, build_indices, document_layout
from mt.tests.indexed.build_jobs import build_first_samples


@pytest.fixture
def make(tmp_path):
    """make(name, lengths): the prefix of a pair whose tokens count up, one sequence a document."""

    def make(name, lengths):
        writer = IndexedWriter(tmp_path / name, np.int32, tmp_path / f".{name}")
        writer.add(np.arange(sum(lengths)), lengths, [1] * len(lengths))
        writer.finish()
        return str(tmp_path / name)

    return make


@pytest.fixture
def lengths():
    return np.random.RandomState(3).randint(1, 40, size=500).tolist()


def data(*path, **settings):
    return DataConfig(data_path=path, **{"seq_length": 16, "split": "90,10,0", **settings})


def test_indices_equal_the_golden_ones(megatron_golden):
    for case in megatron_golden["gpt"]:
        found = build_indices(
            np.array(case["sizes"], np.int32),
            np.array(case["indices"]),
            case["num_samples"],
            case["seq"],
            case["seed"],
            add_extra_token=case["add_extra"],
            drop_last=case["drop_last"],
        )
        assert [a.tolist() for a in found] == [
            case["document_index"],
            case["sample_index"],
            case["shuffle_index"],
        ]
    big = megatron_golden["gpt_big"]
    sizes = np.random.RandomState(0).randint(1, 2000, size=5000).astype(np.int32)
    found = build_indices(sizes, np.arange(4845), big["num_samples"], big["seq"], big["seed"])
    assert [str(a.dtype) for a in found] == big["dtypes"]
    names = ("document_index", "sample_index", "shuffle_index")
    assert [hashlib.sha256(a.tobytes()).hexdigest() for a in found] == [big[f"{n}_sha256"] for n in names]


@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
@pytest.mark.parametrize("seq_length", [1, 7, 64, 1000])
def test_sample_indices_equal_those_of_megatrons_compiled_helper(monkeypatch, seq_length, compile_from):
    helpers = pytest.importorskip("megatron.core.datasets.helpers_cpp")
    monkeypatch.setattr(blend, "COMPILE_FROM", compile_from)
    random = np.random.RandomState(seq_length)
    sizes = random.randint(1, 300, size=400).astype(np.int32)
    found = build_indices(sizes, np.arange(400), 5000 // seq_length * 40, seq_length, 5)
    tokens = int(sizes.sum())
    epochs = len(found[0]) // 400
    theirs = helpers.build_sample_idx_int32(sizes, found[0], seq_length, epochs, tokens, True, 1)
    assert np.array_equal(found[1], theirs)


def test_unaligned_read_only_lengths_give_the_same_compiled_index(monkeypatch):
    monkeypatch.setattr(blend, "COMPILE_FROM", 0)
    sizes = np.random.RandomState(1).randint(1, 300, size=5000).astype(np.int32)
    # read-only, and not aligned to four bytes
    mapped = np.frombuffer(b"ab" + sizes.tobytes(), "<i4", offset=2)
    whole, same = (build_indices(s, np.arange(5000), 20_000, 64, 5) for s in (sizes, mapped))
    assert np.array_equal(whole[1], same[1])
    assert whole[1].dtype == np.int32


@pytest.mark.parametrize(("extra", "drop_last"), [(1, True), (1, False), (0, True), (0, False)])
# 1068 and 1123 samples need 0.76 and 0.85 of a second epoch
@pytest.mark.parametrize("num_samples", [None, 100, 1068, 1123, 2000])
def test_samples_equal_those_of_megatron_core(make, lengths, num_samples, extra, drop_last):
    from megatron.core.datasets.gpt_dataset import GPTDataset as Theirs
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset as TheirIndexed
    from megatron.core.datasets.utils import Split
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    prefix = make("p", lengths)
    settings = GPTDatasetConfig(
        random_seed=7,
        sequence_length=16,
        blend=([prefix], None),
        split="1,0,0",
        tokenizer=NullTokenizer(100000),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(prefix + "-theirs"),
        mid_level_dataset_surplus=0.005,
        add_extra_token_to_sequence=bool(extra),
        drop_last_partial_validation_sequence=drop_last,
    )
    theirs = Theirs(
        TheirIndexed(prefix), prefix, np.arange(20, 480, dtype=np.int32), num_samples, Split.valid, settings
    )
    ours = GPTDataset(
        IndexedDataset(prefix), (20, 480), num_samples, 16, 7, add_extra_token=extra, drop_last=drop_last
    )
    assert len(ours) == len(theirs)
    short = 0
    for k in range(len(ours)):
        theirs._pad_token_id = PAD
        text, _ = theirs._query_document_sample_shuffle_indices(k)
        assert ours[k].tolist() == text.tolist()
        short += PAD in ours[k]
    assert short == (not drop_last)


def test_document_layouts_equal_those_of_megatron_core():
    import torch
    from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids as theirs

    eod = 9
    tokens = np.random.RandomState(0).randint(0, 10, size=(20, 32))
    tokens[0], tokens[1], tokens[2, 0], tokens[3, -1], tokens[4, 5:8] = 1, eod, eod, eod, eod
    found = document_layout(tokens, eod)
    for row in range(20):
        mask, loss_mask, positions = theirs(torch.from_numpy(tokens[row]), eod, True, True, True, True)
        assert found.position_ids[row].tolist() == positions.tolist()
        assert (tokens[row] != eod).tolist() == loss_mask.bool().tolist()
        ids = found.document_ids[row]
        attended = (ids[:, None] == ids[None, :]) & (np.arange(32)[:, None] >= np.arange(32)[None, :])
        assert np.array_equal(~attended, mask[0].numpy())


def test_cumulative_lengths_equal_those_of_a_plain_loop():
    eod = 9
    tokens = np.random.RandomState(1).randint(0, 10, size=(7, 16))
    bounds, at = [0], 0
    for row in tokens.tolist():
        for column, token in enumerate(row):
            at += 1
            if token == eod or column == 15:
                bounds.append(at)
    found = document_layout(tokens, eod)
    assert (found.cu_seqlens.dtype, found.cu_seqlens.tolist()) == (np.int32, bounds)
    assert found.max_seqlen == np.diff(bounds).max()
    assert (found.document_ids.dtype, found.position_ids.dtype) == (np.int32, np.int64)


def test_a_batch_has_its_samples_and_an_epoch_has_every_token_once(make, lengths):
    dataset = GPTDataset(IndexedDataset(make("p", lengths)), (0, 500), None, 16, 1)
    batch = dataset.batch(range(len(dataset)))
    assert (batch.dtype, batch.shape) == (np.int64, (len(dataset), 17))
    assert all((batch[k] == dataset[k]).all() for k in range(0, len(dataset), 7))
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).batch([3, 1]), batch[[3, 1]])
    assert dataset.batch([]).shape == (0, 17)
    seen = np.bincount(batch[:, :-1].ravel(), minlength=sum(lengths))
    assert seen.max() == 1
    assert (seen == 0).sum() < 17 + 1


def test_the_splits_share_no_token_and_a_split_without_samples_is_not_built(make, lengths):
    train, valid, test = build_datasets(data(make("p", lengths)), (None, None, 0))
    assert test is None
    seen = [set(d.batch(range(len(d))).ravel().tolist()) for d in (train, valid)]
    assert not seen[0] & seen[1]
    assert max(seen[0]) < min(seen[1]), "validation is the tail"


def test_a_cache_is_reused_but_not_for_other_data_or_settings(make, lengths, tmp_path):
    prefix = make("p", lengths)
    first, *_ = build_datasets(data(prefix), (100, 0, 0))
    files = sorted((tmp_path / "cache").glob("*.npy"))
    assert len(files) == 3
    stamps = [f.stat().st_mtime_ns for f in files]
    again, *_ = build_datasets(data(prefix), (100, 0, 0))
    assert [f.stat().st_mtime_ns for f in files] == stamps
    assert again.fingerprint == first.fingerprint
    assert again[3].tolist() == first[3].tolist()
    others = [
        build_datasets(data(prefix, seed=1), (100, 0, 0)),
        build_datasets(data(prefix, split="80,20"), (100, 0, 0)),
        build_datasets(data(prefix), (101, 0, 0)),
        build_datasets(data(prefix, seq_length=8), (100, 0, 0)),
    ]
    make("p", [*lengths[1:], lengths[0]])  # tokenized again
    others.append(build_datasets(data(prefix), (100, 0, 0)))
    assert len({first.fingerprint, *(d[0].fingerprint for d in others)}) == 6
    build_datasets(data(prefix, data_cache_path=str(tmp_path / "elsewhere")), (100, 0, 0))
    assert len(list((tmp_path / "elsewhere").glob("*.npy"))) == 3


def test_a_truncated_cache_file_is_refused(make, lengths, tmp_path):
    prefix = make("p", lengths)
    build_datasets(data(prefix), (100, 0, 0))
    for path in (tmp_path / "cache").glob("*shuffle_index.npy"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(config.UserError, match=r"not a .npy file .*; remove the file, and it is built again"):
        build_datasets(data(prefix), (100, 0, 0))


@pytest.mark.parametrize("value", [np.array(5), np.array([1.5]), np.array(["a"])])
def test_a_cache_file_of_something_else_is_refused(make, lengths, tmp_path, value):
    prefix = make("p", lengths)
    build_datasets(data(prefix), (100, 0, 0))
    for path in (tmp_path / "cache").glob("*shuffle_index.npy"):
        np.save(path, value)
    with pytest.raises(config.UserError, match=r"not integers|not \(any\)"):
        build_datasets(data(prefix), (100, 0, 0))


def test_processes_that_build_the_same_cache_at_once_agree(make, lengths):
    settings = data(make("p", lengths))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(build_first_samples, [settings] * 6, chunksize=1)
    assert all(f == found[0] for f in found)


def test_a_blend_draws_from_each_source_by_its_weight_and_repeats_small_ones(make, lengths):
    large, small = make("large", lengths * 4), make("small", lengths[:20])
    train, *_ = build_datasets(data("3", large, "1", small, split="1"), (1000, 0, 0))
    assert len(train) >= 1000
    rows = train.describe()
    assert [(r["prefix"], r["weight"], r["samples"]) for r in rows] == [
        (large, 0.75, 750),
        (small, 0.25, 250),
    ]
    assert rows[1]["epochs"] == pytest.approx(250 * 16 / sum(lengths[:20]), abs=1e-3)
    assert rows[0]["epochs"] < 1 < rows[1]["epochs"]
    batch = train.batch(range(8))
    assert batch.shape == (8, 17)
    assert train.dataset_index[:8].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert batch[1].tolist() == train.datasets[1][0].tolist()


def test_a_blend_equals_that_of_megatron_core(make, lengths):
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset as Theirs
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    first, second = make("a", lengths), make("b", lengths[:150])
    settings = GPTDatasetConfig(
        random_seed=7,
        sequence_length=16,
        blend=([first, second], [0.3, 0.7]),
        split="90,10,0",
        tokenizer=NullTokenizer(100000),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=None,
        mid_level_dataset_surplus=0.005,
    )
    theirs = BlendedMegatronDatasetBuilder(Theirs, [333, 40, 0], lambda: True, settings).build()
    ours = build_datasets(data("0.3", first, "0.7", second, seed=7), (333, 40, 0))
    for mine, other in zip(ours[:2], theirs[:2]):
        assert len(mine) == len(other)
        assert all(mine[k][:-1].tolist() == other[k]["tokens"].tolist() for k in range(len(mine)))


def test_prefixes_without_weights_are_used_for_one_epoch(make, lengths):
    paths = make("a", lengths), make("b", lengths[:100])
    whole, *_ = build_datasets(data(*paths, split="1"), (None, 0, 0))
    assert len(whole) == sum(len(d) for d in whole.datasets)
    part, *_ = build_datasets(data(*paths, split="1"), (50, 0, 0))
    assert len(part) == 50
    with pytest.raises(
        config.UserError,
        match=(
            r"one epoch of its 2 prefixes has [\d,]+ train samples, fewer than the 9,999 asked for; give"
            r" every prefix a weight"
        ),
    ):
        build_datasets(data(*paths, split="1"), (9999, 0, 0))


def test_a_batch_of_a_blend_has_its_samples_in_order(make, lengths):
    train, *_ = build_datasets(
        data(
            "3", make("a", lengths), "1", make("b", lengths[:20]), "2", make("c", lengths[7:300]), split="1"
        ),
        (300, 0, 0),
    )
    order = np.random.RandomState(0).permutation(len(train))[:50]
    assert train.batch(order).tolist() == [train[k].tolist() for k in order]


def test_the_order_of_a_blend_is_cached(make, lengths, tmp_path, monkeypatch):
    settings = data("3", make("a", lengths), "1", make("b", lengths[:20]), split="1")
    train, *_ = build_datasets(settings, (300, 0, 0))
    monkeypatch.setattr("mt.indexed.gpt_dataset.blending_indices", None)
    again, *_ = build_datasets(settings, (300, 0, 0))
    assert again.dataset_index.tolist() == train.dataset_index.tolist()
    with pytest.raises(TypeError):
        build_datasets(settings, (301, 0, 0))


def test_splits_with_their_own_paths_use_all_of_them(make, lengths):
    a, b, c = make("a", lengths), make("b", lengths[:100]), make("c", lengths[100:200])
    settings = DataConfig(train_data_path=("0.3", a, "0.7", b), valid_data_path=(c,), seq_length=16)
    train, valid, test = build_datasets(settings, (200, None, 0))
    assert [r["prefix"] for r in train.describe()] == [a, b]
    assert [d.range for d in train.datasets] == [(0, 500), (0, 100)]
    assert valid.range == (0, 100)
    assert test is None
    assert settings.files() == [f"{p}.{s}" for p in (a, b, c) for s in ("bin", "idx")]
    with pytest.raises(
        config.UserError, match="test_data_path names nothing, but test samples are asked for"
    ):
        build_datasets(settings, (200, 5, 5))
    with pytest.raises(
        config.UserError,
        match="data_path and paths of their own for train, valid or test are given; leave one of them out",
    ):
        DataConfig(data_path=(a,), valid_data_path=(c,))
    with pytest.raises(config.UserError, match="valid_data_path: 'x' stands where a weight must"):
        DataConfig(train_data_path=(a,), valid_data_path=("0.5", a, "x", b))


def test_an_empty_split_is_refused(make):
    prefix = make("p", [20] * 10)
    with pytest.raises(config.UserError, match="split = 969,30,1 of its 10 sequences leaves none for valid"):
        build_datasets(data(prefix, split="969,30,1"), (5, 5, 0))
    with pytest.raises(config.UserError, match="leaves none for test"):
        build_datasets(data(prefix), (5, 0, 1))
    with pytest.raises(config.UserError, match="has 20 tokens, fewer than the 33 of one sample"):
        build_datasets(data(prefix, seq_length=32), (5, None, 0))
    _, few, _ = build_datasets(data(prefix, seq_length=32), (5, 5, 0))
    assert len(few) == 5, "few tokens are repeated"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("0.5", "a", "x", "b"), "'x' stands where a weight must"),
        (("-1", "a", "2", "b"), "must not be negative and not all be 0"),
        (("0", "a", "0", "b"), "must not be negative and not all be 0"),
        ((), "must name at least one prefix"),
        (("0.5",), "data_path: 0.5 is a number where the prefix of a .bin/.idx pair must stand; weights and"),
        (("a", "0.5"), "0.5 is a number where"),
        (("0.5", "0.7"), "0.7 is a number where"),
        (("0.5", "a", "0.3"), "0.5 is a number where .* must alternate, as in 0.7 a 0.3 b"),
        (("a", "0.5", "b"), "0.5 is a number where"),
    ],
)
def test_an_invalid_data_path_is_refused(path, message):
    with pytest.raises(config.UserError, match=message):
        DataConfig(data_path=path)


def test_a_pair_may_have_a_number_for_a_name(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("2024", [20] * 10)
    assert DataConfig(data_path=("2024",)).sources("train") == ((None, "2024"),)
    assert DataConfig(data_path=("0.5", "2024")).sources("train") == ((0.5, "2024"),)
    assert DataConfig(data_path=("./2023",)).sources("train") == ((None, "./2023"),)


def test_an_extension_or_a_missing_pair_is_refused(make, tmp_path):
    with pytest.raises(config.UserError, match=r"give the prefix alone, p$"):
        build_datasets(data("p.bin"), (1, 0, 0))
    with pytest.raises(config.UserError, match=r"nowhere.idx: no such file"):
        build_datasets(data(str(tmp_path / "nowhere")), (1, 0, 0))


def test_training_uses_indices_that_were_built_before(make, lengths, tmp_path):
    prefix = make("p", lengths)
    made = index(
        IndexConfig(
            data_path=(prefix,),
            seq_length=16,
            split="90,10,0",
            train_samples=200,
            valid_samples=20,
            output=str(tmp_path / "out"),
        )
    )
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert [(r["split"], r["samples"]) for r in made["sources"]] == [("train", 200), ("valid", 20)]
    assert made["text"].splitlines()[0].split() == [
        "split",
        "weight",
        "sequences",
        "tokens",
        "samples",
        "epochs",
        "source",
    ]
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.npy")}
    train, valid, _ = build_datasets(data(prefix), (200, 20, 0))
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.npy")} == stamps
    assert made["fingerprints"] == {"train": train.fingerprint, "valid": valid.fingerprint}
    for f in stamps:
        f.unlink()
    again = index(
        IndexConfig(
            data_path=(prefix,),
            seq_length=16,
            split="90,10,0",
            train_samples=200,
            valid_samples=20,
            output=str(tmp_path / "out"),
        )
    )
    assert again["finished"] == made["finished"]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 6, "a cache that was removed is built again"
