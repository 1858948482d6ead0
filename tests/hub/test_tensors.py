"""Weights are checked by their headers and streamed; whatever does not fit is named before anything is written."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vla_mot.errors import CheckpointError
from vla_mot.hub.tensors import Weights, load_weights, write_tensors, write_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.rand(x.shape).to(x.dtype) for key, x in Net().state_dict().items()}


def on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def test_a_model_without_memory_is_filled(tmp_path, weights):
    write_tensors(tmp_path / "w.safetensors", weights)
    net = on_meta()
    load_weights(net, Weights.open(tmp_path / "w.safetensors"))
    assert all(torch.equal(net.state_dict()[key], x) for key, x in weights.items())
    assert isinstance(net.a.weight, nn.Parameter) and net.a.weight.requires_grad


def test_a_model_is_filled_in_place(tmp_path, weights):
    write_tensors(tmp_path / "w.safetensors", weights)
    net = Net()
    before = net.a.weight.data_ptr()
    load_weights(net, Weights.open(tmp_path / "w.safetensors"))
    assert net.a.weight.data_ptr() == before and torch.equal(net.a.weight, weights["a.weight"])


def test_shards_hold_what_one_file_would(tmp_path, weights):
    files = write_weights(tmp_path, weights, max_shard_bytes=64)
    assert len(files) > 2 and "model.safetensors.index.json" in files
    read = Weights.open(tmp_path).read()
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], x) for key, x in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: places.update({"c.weight": next(iter(places.values()))}), "disagree on c.weight in"),
        (lambda places: places.pop("a.weight"), "disagree on a.weight in"),
        (lambda places: places.update({"a.weight": "../else.safetensors"}), "points outside its folder"),
        (lambda places: places.update({"a.weight": "gone.safetensors"}), "gone.safetensors is missing"),
        (lambda places: places.update({"a.weight": 3}), "no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, weights, change, message):
    write_weights(tmp_path, weights, max_shard_bytes=64)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        Weights.open(tmp_path)


def test_a_truncated_shard_is_named(tmp_path, weights):
    files = write_weights(tmp_path, weights, max_shard_bytes=64)
    shard = tmp_path / files[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{files[0]} \(\d+ bytes\) is truncated"):
        Weights.open(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "last.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"only as pickles \\({name}\\), which run code"):
        Weights.open(tmp_path)


def test_every_misfit_is_named_and_nothing_is_written(tmp_path, weights):
    weights["extra"] = torch.zeros(1)
    weights["a.weight"] = torch.zeros(4, 4)
    weights["b.weight"] = weights["b.weight"].half()
    weights["count"] = torch.zeros(2)
    del weights["b.bias"]
    write_tensors(tmp_path / "w.safetensors", weights)
    net = Net()
    before = {key: x.clone() for key, x in net.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, Weights.open(tmp_path / "w.safetensors"))
    for part in (
        "a.weight has shape (4, 4), the model's is (4, 3)",
        "b.weight has dtype torch.float16, expected torch.float32",
        "count has dtype torch.float32, expected torch.int64",
        "missing b.bias (2,)",
        "unexpected extra (1,)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(net.state_dict()[key], x) for key, x in before.items())


def test_names_that_meet_are_refused(tmp_path, weights):
    """Two tensors for one weight, as when a tied weight is stored twice: which one would win is nobody's guess."""
    weights["head"] = weights["a.weight"] + 1
    write_tensors(tmp_path / "w.safetensors", weights)
    rename = {"head": "a.weight"}
    with pytest.raises(
        CheckpointError, match=r"head and a.weight both stand for a.weight|a.weight and head both"
    ):
        load_weights(
            on_meta(), Weights.open(tmp_path / "w.safetensors"), rename=lambda name: rename.get(name, name)
        )


def test_dtypes_are_converted_only_on_request(tmp_path, weights):
    half = {key: x.bfloat16() if x.is_floating_point() else x for key, x in weights.items()}
    write_tensors(tmp_path / "w.safetensors", half)
    found = Weights.open(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"dtype torch.bfloat16, expected torch.float32"):
        load_weights(on_meta(), found)
    wide, kept = on_meta(), on_meta()
    load_weights(wide, found, stored={key: x.dtype for key, x in half.items()})
    load_weights(kept, found, as_stored=True)
    assert wide.a.weight.dtype == torch.float32 and torch.equal(wide.a.weight, half["a.weight"].float())
    assert kept.a.weight.dtype == torch.bfloat16 and torch.equal(kept.a.weight, half["a.weight"])


def test_only_floating_numbers_count_as_any_dtype(tmp_path, weights):
    weights["a.weight"] = torch.zeros(4, 3, dtype=torch.int64)
    write_tensors(tmp_path / "w.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"a.weight has dtype torch.int64"):
        load_weights(on_meta(), Weights.open(tmp_path / "w.safetensors"), as_stored=True)


def test_an_unreadable_header_is_no_traceback(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        Weights.open(tmp_path)


def test_metadata_travels(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors", metadata={"tied": "a"})
    assert Weights.open(tmp_path).metadata() == {"tied": "a"}
