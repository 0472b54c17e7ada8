"""Reads a file of examples and collects its rejected rows."""


def read(reader, path):
    """(examples, [(place, reason) of every rejected row])."""
    rejects = []
    examples = list(reader(path, rejects.append))
    assert all(reject.file == str(path) for reject in rejects)
    return examples, [(reject.place, reject.reason) for reject in rejects]
