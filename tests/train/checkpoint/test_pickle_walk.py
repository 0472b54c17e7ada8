"""Pickles that cost more than their length, and those of torch.save, which must all pass."""

import argparse
import collections
import io
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from mt.train.checkpoint.pickle_walk import TorchWalk, Walk, is_torch_name


def shared(levels=40, value=()):
    """t = (t, t), so deep that its hash is never finished."""
    for _ in range(levels):
        value = (value, value)
    return value


def opcodes(levels=40):
    """The same as opcodes that leave it on the stack; Python cannot make a pickle of a key with it."""
    return b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))


T = opcodes()
BOMBS = {
    "a key": b"}" + T + b"Ns",
    "keys": b"}(NN" + T + b"Nu",
    "a member of a frozenset": b"(" + T + b"\x91",
    "members of a set": b"\x8f(" + T + b"\x90",
    "a key within a tuple": b"}(K\x01" + T + b"K\x02tNs",
    "deeper than C can call": b"})" + b"\x85" * 100_000 + b"Ns",
    "numbers of one hash": b"}("
    + b"".join(b"\x8a\x20" + (n * ((1 << 61) - 1)).to_bytes(32, "little") + b"N" for n in range(1, 5000))
    + b"u",
    "floats": b"}(" + b"G" + b"".join(bytes(8) + b"NG" for n in range(5000)) + bytes(8) + b"Nu",
    "a wide key": b"}(" + b"K\x01" * 5000 + b"tNs",
    "a memo of 2^31": b"]r\xff\xff\xff\x3f",
    "another writer": b"N2\x86",
    "nothing on the stack": b"h\x05",
    "no mark": b"u",
}


@pytest.mark.parametrize("kind", [Walk, lambda data: TorchWalk(data, ())], ids=["inert", "torch"])
@pytest.mark.parametrize("name", BOMBS)
def test_what_never_ends_is_refused(name, kind):
    with pytest.raises(ValueError):
        kind(b"\x80\x04" + BOMBS[name] + b".").check()


def named(name):
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


SET, STATE = named("builtins.set"), text("__setstate__")
OBJECT = named("argparse.Namespace") + b")\x81"
CALLS = {
    "a set of a list": SET + b"](" + T + b"e\x85R",
    "a set of a tuple": SET + T + b"\x85R",
    "a set of a set again and again": b"](" + b"K\x01" * 1000 + b"eq\x01" + (SET + b"h\x01\x85R0") * 3000,
    "a size": b"}" + named("torch.Size") + T + b"\x85RNs",
    "a mapping of pairs": named("collections.OrderedDict") + b"](" + T + b"N\x86e\x85R",
    "the key of a storage": b"(" + text("storage") + named("torch.FloatStorage") + T + b"NNtQ",
    "empty bytes": named("builtins.bytearray") + b"J\xff\xff\xff\x7f\x85R",
    "an empty tensor": named("torch.Tensor") + b"J\xff\xff\xff\x7f\x85R",
    "a storage": named("torch.UntypedStorage") + b"J\xff\xff\xff\x7f\x85R",
    "hexadecimal": named("_codecs.encode") + b"N" + text("hex") + b"\x86R",
    "a long text again and again": text("a" * 10**6)
    + b"q\x01"
    + (named("_codecs.encode") + b"h\x01" + text("latin1") + b"\x86R0") * 10,
    "a hidden call": named("torch._tensor._rebuild_from_type_v2")
    + b"(" + named("builtins.set") + named("torch.Tensor") + b"](" + T + b"e\x85}tR",
    "a state of pairs": OBJECT + b"](" + T + b"N\x86eb",
    "a state in a tuple": OBJECT + T + b"N\x86\x85b",
    "a state again and again": b"}(" + b"".join(text(str(n)) + b"N" for n in range(9999)) + b"uq\x01"
    + (OBJECT + b"h\x01b0") * 9999,
    "a method": OBJECT + b"}" + STATE + SET + b"sb",
    "a call of a value": b"N)R",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_costs_no_more_than_its_place_in_the_file(name):
    with pytest.raises(ValueError):
        TorchWalk(b"\x80\x02" + CALLS[name] + b".", ["argparse.Namespace"]).check()


def test_shared_tuples_that_nobody_hashes_pass():
    Walk(pickle.dumps({"a": shared(), "b": [shared()]})).check()


def of_torch(value):
    """The pickle that torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as entries:
        name = next(name for name in entries.namelist() if name.endswith("/data.pkl"))
        return entries.read(name)


def with_attributes():
    """As Megatron-LM's optimizer has them."""
    tensor = torch.zeros(3, requires_grad=True)
    tensor.tensor_model_parallel = True
    return tensor


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.zeros(2, 3), "b": torch.nn.Parameter(torch.zeros(2))},
        torch.nn.Linear(2, 3).state_dict(),
        [with_attributes(), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float8_e4m3fn)],
        torch.zeros(3, dtype=torch.uint16),
        torch.optim.AdamW(torch.nn.Linear(2, 3).parameters()).state_dict(),
        argparse.Namespace(params_dtype=torch.bfloat16, betas=(0.9, 0.95), layout=[1] * 100, large=10**30),
        {"size": torch.Size([2, 3]), "set": {1, 2, "x"}, "device": torch.device("cpu"), 7: {(1, 2): None}},
        {"bytes": b"\xff" * 1000, "array": bytearray(b"\xff" * 10), "none": bytearray(), "c": 1j},
        {"random": random.getstate(), "shared": [shared()] * 2},
        {"of numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        collections.OrderedDict({f"layer.{n}": n for n in range(10_000)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_torch_saves_passes(value):
    walk = TorchWalk(of_torch(value), ["argparse.Namespace"])
    walk.check()
    assert all(n.startswith("numpy") or n == "argparse.Namespace" or is_torch_name(n) for n in walk.names)


def test_the_names_are_those_that_torch_finds(tmp_path):
    torch.save({"a": np.float32(1.0), "n": argparse.Namespace(), "t": torch.zeros(1)}, tmp_path / "a.pt")
    walk = TorchWalk(of_torch(torch.load(tmp_path / "a.pt", weights_only=False)), ())
    walk.check()
    with torch.serialization.safe_globals([]):
        found = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "a.pt")
    ours = {name for name in walk.names if not is_torch_name(name)}
    assert set(found) <= ours
