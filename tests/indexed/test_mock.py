from mt.indexed import mock
from mt.indexed.format import IndexedDataset
from mt.indexed.mock import write_mock_data
from mt.tokenizer.tokenizer import TokenizerConfig


def test_mock_data_is_a_pair_of_counted_tokens_that_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(mock, "DOCUMENTS", 5)
    tokenizer = TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=100)
    write_mock_data(str(tmp_path / "mock_text_document"), tokenizer)
    pair = IndexedDataset(str(tmp_path / "mock_text_document"))
    # MockGPTLowLevelDataset's lengths: numpy's generator of seed 0
    assert (len(pair), len(pair[0]), len(pair[1])) == (5, 3484, 2609)
    assert pair[0][:3].tolist() == [1, 2, 3]
    assert pair[0][-1] == 99
    written = (tmp_path / "mock_text_document.idx").stat().st_mtime_ns
    write_mock_data(str(tmp_path / "mock_text_document"), tokenizer)
    assert (tmp_path / "mock_text_document.idx").stat().st_mtime_ns == written
