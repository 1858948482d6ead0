"""Tensors come out of TorchScript archives, honest ones exactly and forged ones not at all."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from vla_mot.errors import CheckpointError
from vla_mot.hub.torchscript import read_torchscript

# The archives under test are made by what torch calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Everything(nn.Module):
    """Attributes of every kind that a scripted module can keep."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.numbers, self.real, self.text, self.nothing = [1, 2**40], 3.5, "häh", None
        self.table, self.pair, self.device = {"x": 1}, (1, "a"), torch.device("cpu")
        self.tensors = [torch.ones(2)]
        self.register_buffer("float16", torch.arange(6, dtype=torch.float16).view(2, 3).T)
        self.register_buffer("bfloat16_", torch.randn(3).bfloat16())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("no_rows", torch.empty(0, 3))
        self.register_buffer("scalar", torch.tensor(7))

    def forward(self, x):
        return self.linear(x) * self.real + self.numbers[0] + self.table["x"] + self.pair[0]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "model.jit"
    torch.jit.script(Everything()).save(str(path))
    return path


STORED = torch.tensor([1.5, -2.0])


def rewritten(path: Path, change: dict[str, bytes | None], **options) -> Path:
    """A copy of an archive in which entries are replaced, added, or left out (None)."""
    copy, given = path.with_name("forged.jit"), dict(change)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w", **options) as new:
        for info in old.infolist():
            root, _, name = info.filename.partition("/")
            content = given.pop(name, old.read(info))
            if content is not None:
                new.writestr(f"{root}/{name}", content)
        for name, added in given.items():
            new.writestr(f"{root}/{name}", added)
    return copy


def forged(path: Path, body: bytes) -> Path:
    """A copy whose data.pkl holds a module with one attribute `x`, made by the opcodes of `body`."""
    module = b"\x80\x02c__torch__\nM\n)\x81}(" + text("x") + body + b"ub."
    return rewritten(path, {"data.pkl": module, "data/mine": STORED.numpy().tobytes()})


def text(content: str) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content.encode()


def tensor(
    size: bytes = b"K\x02\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00", count: bytes = b"K\x02",
    key: str = "mine", kind: bytes = b"FloatStorage",
) -> bytes:  # fmt: skip
    storage = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + count + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + hooks + b"tR"


def test_every_tensor_is_read_as_torch_reads_it(archive):
    expected = torch.jit.load(archive).state_dict()
    found = read_torchscript(archive)
    assert found.keys() == expected.keys() and len(found) == 14
    for name, theirs in expected.items():
        assert found[name].dtype == theirs.dtype and torch.equal(found[name], theirs), name
        assert found[name].is_contiguous()


def test_forged_archives_of_these_tests_are_read_when_they_are_honest(archive):
    assert torch.equal(read_torchscript(forged(archive, tensor()))["x"], STORED)


def test_nothing_in_it_is_run(archive, tmp_path):
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    for protocol in range(2, 6):
        path = rewritten(archive, {"data.pkl": pickle.dumps(Evil(), protocol)})
        with pytest.raises(
            CheckpointError, match=r"asks for (posix|os)\.system.*refused and nothing was run|opcode"
        ):
            read_torchscript(path)
    assert not witness.exists()


def test_the_program_is_not_even_read(archive):
    code = [name for name in zipfile.ZipFile(archive).namelist() if "/code/" in name]
    assert code
    broken = rewritten(archive, {name.partition("/")[2]: b"import os; os.abort()" for name in code})
    assert read_torchscript(broken).keys() == read_torchscript(archive).keys()


@pytest.mark.parametrize(
    "name",
    ["builtins\neval", "torch.jit\nload", "torch._utils\n_rebuild_wrapper_subclass", "torch\nload", "torch_\nx",
     "__torch__x\nM", "torch.storage\n_load_from_bytes", "builtins\ngetattr", "torch\nQUInt8Storage"],
)  # fmt: skip
def test_any_other_global_is_refused_by_name(archive, name):
    with pytest.raises(CheckpointError, match=name.replace("\n", r"\.") + ", which is neither"):
        read_torchscript(forged(archive, b"c" + name.encode() + b"\n"))


MANY = b"\x8a\x08" + (2**60).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(size=b"K\x03\x85"), r"x has shape \(3,\).*more than the 2 numbers"),
        (tensor(offset=b"K\x01"), "offset 1, which is more than the 2 numbers"),
        (tensor(stride=b"K\x02\x85"), r"strides \(2,\)"),
        (tensor(size=MANY + b"\x85", stride=b"K\x00\x85"), "more than the 2 numbers"),
        (tensor(size=MANY + b"\x85", count=MANY), "bytes for x, whose .* needs"),
        (tensor(offset=b"J\xff\xff\xff\xff"), "something else than a storage and an offset"),
        (tensor(size=b"J\xff\xff\xff\xff\x85"), "sizes and strides of which some are no counts"),
        (tensor(stride=b"J\xff\xff\xff\xff\x85"), "sizes and strides of which some are no counts"),
        (tensor(size=b"K\x02"), "sizes and strides"),
        (tensor(size=b"G" + bytes(8) + b"\x85"), "sizes and strides"),
        (tensor(key="99"), "lacks its entry 'data/99'"),
        (tensor(key="../data.pkl"), "lacks its entry"),
        (tensor(kind=b"DoubleStorage"), "bytes for x, whose .*float64.* needs 16"),
        (tensor(count=b"J\xff\xff\xff\xff"), "no storage"),
        (text("storage") + b"Q", "no storage"),
        (tensor() + b"}b", "sets attributes of something that is no module"),
        (b"ccollections\nOrderedDict\n}" + text("__defaults__") + b")sb", "no module"),
        (b"c__torch__\nM\n)R", "calls a value"),
        (b"ctorch\nFloatStorage\n)\x81", "makes an instance of a value"),
        (b"}))s", "key of a strange type"),
        (b")" + b"\x85" * 100_000, "^$"),
        (b"}()" + b"\x85" * 100_000 + b")u", "key of a strange type"),
        (b")r\xff\xff\xff\xff", "^$"),
        (b"\x8c\x01a", "opcode 0x8c"),
        (b"2", "opcode 0x32"),
        (b"R", "damaged data.pkl"),
        (b"h\x09", "damaged data.pkl"),
        (b"X\xff\xff\xff\x7f", "damaged data.pkl"),
    ],
)  # fmt: skip
def test_a_forged_module_is_refused(archive, body, message):
    path = forged(archive, body)
    if message == "^$":  # strange, but no tensor and no harm
        assert read_torchscript(path) == {}
        return
    with pytest.raises(CheckpointError, match=message):
        read_torchscript(path)


def test_a_module_inside_itself_is_refused(archive):
    cycle = b"\x80\x02c__torch__\nM\n)\x81q\x00}" + text("x") + b"h\x00sb."
    with pytest.raises(CheckpointError, match=r"nests its modules without end, at 'x\.x"):
        read_torchscript(rewritten(archive, {"data.pkl": cycle}))


def test_views_may_not_multiply_a_storage(archive):
    """Twenty transposed views of one storage of 400 kB, each of which would become a copy."""
    many = b"".join(
        text(f"v{k}") + tensor(
            size=b"K\x02J" + (5 * 10**4).to_bytes(4, "little") + b"\x86", stride=b"K\x01K\x02\x86",
            count=b"J" + (10**5).to_bytes(4, "little"), key="big",
        )
        for k in range(20)
    )  # fmt: skip
    pickled = b"\x80\x02c__torch__\nM\n)\x81}(" + many + b"ub."
    copy = rewritten(archive, {"data.pkl": pickled, "data/big": bytes(4 * 10**5)})
    with pytest.raises(CheckpointError, match="views of the same storages"):
        read_torchscript(copy)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02.", b"\x80\x02K\x01.", b"\x80\x02}.", b"\x80\x09.", b"garbage"]
)
def test_a_pickle_that_is_no_module_is_refused(archive, content):
    with pytest.raises(CheckpointError, match=r"damaged data\.pkl|instead of a scripted module"):
        read_torchscript(rewritten(archive, {"data.pkl": content}))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9, -1])
def test_a_truncated_archive_is_refused(archive, keep):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(
        CheckpointError, match=r"model\.jit \(\d+ bytes\) is truncated or no TorchScript archive"
    ):
        read_torchscript(archive)


def test_an_altered_number_is_found(archive):
    weight = torch.jit.load(archive).linear.weight.detach().numpy().tobytes()
    data = bytearray(archive.read_bytes())
    data[data.index(weight)] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"Bad CRC-32 for file 'model/data/\d+'"):
        read_torchscript(archive)


def test_random_damage_never_ends_in_another_error(archive):
    clean, generator = archive.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(300):
        data = bytearray(clean)
        for place in torch.randint(len(data), (8,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (1,), generator=generator))
        archive.write_bytes(data)
        try:
            read_torchscript(archive)
        except CheckpointError:
            continue


def test_random_opcodes_never_end_in_another_error(archive):
    with zipfile.ZipFile(archive) as file:
        clean = file.read("model/data.pkl")
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        data = bytearray(clean)
        for place in torch.randint(len(data), (3,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (1,), generator=generator))
        try:
            read_torchscript(rewritten(archive, {"data.pkl": bytes(data)}))
        except CheckpointError:
            continue


def test_other_zips_are_refused(archive, tmp_path):
    compressed = rewritten(archive, {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compresses its entry"):
        read_torchscript(compressed)
    with pytest.raises(CheckpointError, match=r"holds 0 data\.pkl"):
        read_torchscript(rewritten(archive, {"data.pkl": None}))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torchscript(rewritten(archive, {"byteorder": b"big"}))
    with pytest.raises(CheckpointError, match="missing; a TorchScript archive"):
        read_torchscript(tmp_path / "none.jit")
    with zipfile.ZipFile(archive, "a") as file, pytest.warns(UserWarning):
        file.writestr("model/data.pkl", b"")
    with pytest.raises(CheckpointError, match="names an entry twice"):
        read_torchscript(archive)
