"""What the readers of dumps and crawls find, for tests that run them in another process."""

from mt.dataprep.extract import warc, wikipedia


def kinds_of_dump(path, max_bytes):
    parts = wikipedia.split_dump(str(path), 1 << 40)
    return [type(found).__name__ for part in parts for _, found in wikipedia.documents(part, max_bytes)]


def kinds_of_crawl(path, max_bytes):
    return [(name, type(found).__name__) for name, found in warc.documents(str(path), max_bytes)]
