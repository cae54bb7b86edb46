"""Tracing whole models: the sources of every site against sets derived by hand."""

import pytest
import torch
from models import FEATURES, MLP, VOCABULARY, Llama, ViT
from test_trace import DEVICES, Sources, sources

from maxp import trace

# Real models


@pytest.mark.parametrize("device", DEVICES)
def test_an_mlp_is_a_chain(device: str) -> None:
    with torch.device(device):
        feeds = sources(trace(MLP(depth=2, bias=True), torch.zeros(3, FEATURES)))
    assert feeds == {
        "embed": [set()],
        "layers.0": [{"embed"}],
        "layers.1": [{"layers.0"}],
        "readout": [{"layers.1"}],
    }


@pytest.mark.parametrize("device", DEVICES)
def test_a_llama_sums_its_branches_and_multiplies_its_gate(device: str) -> None:
    with torch.device(device):
        graph = trace(Llama(depth=2), torch.zeros(2, 5, dtype=torch.long))
    expected: Sources = {"embed": [set()]}
    stream = {"embed"}
    for i in range(2):
        b = f"blocks.{i}"
        expected |= {f"{b}.{name}": [set(stream)] for name in ("wq", "wk", "wv")}
        expected[f"{b}.qk"] = [{f"{b}.wq"}, {f"{b}.wk"}]
        expected[f"{b}.wo"] = [{f"{b}.qk", f"{b}.wv"}]
        stream |= {f"{b}.wo"}
        expected |= {f"{b}.{name}": [set(stream)] for name in ("w1", "w3")}
        expected[f"{b}.w2"] = [{f"{b}.w1", f"{b}.w3"}]
        stream |= {f"{b}.w2"}
    expected["output"] = [stream]
    assert sources(graph) == expected


@pytest.mark.parametrize("device", DEVICES)
def test_a_vit_reads_q_k_and_v_from_chunks_of_one_projection(device: str) -> None:
    with torch.device(device):
        graph = trace(ViT(depth=2), torch.zeros(2, 5, FEATURES))
    expected: Sources = {"patch": [set()], "position": [set()]}
    stream = {"patch", "position"}
    for i in range(2):
        b = f"blocks.{i}"
        expected[f"{b}.qkv"] = [set(stream)]
        expected[f"{b}.qk"] = [{f"{b}.qkv"}, {f"{b}.qkv"}]
        expected[f"{b}.proj"] = [{f"{b}.qk", f"{b}.qkv"}]
        stream |= {f"{b}.proj"}
        expected[f"{b}.fc1"] = [set(stream)]
        expected[f"{b}.fc2"] = [{f"{b}.fc1"}]
        stream |= {f"{b}.fc2"}
    expected["head"] = [stream]
    assert sources(graph) == expected


def test_a_model_of_226_weights_is_traced_on_meta() -> None:
    depth = 32
    with torch.device("meta"):
        model = Llama(width=2560, depth=depth, head_dim=80)
        graph = trace(model, torch.zeros(1, 16, dtype=torch.long))
    assert len(graph.weighted) == 226
    assert len(graph.sites) == 226 + depth
    (stream,) = sources(graph)["output"]
    blocks = {f"blocks.{i}.{name}" for i in range(depth) for name in ("wo", "w2")}
    assert stream == {"embed"} | blocks
    assert sources(graph)["blocks.31.w2"] == [{"blocks.31.w1", "blocks.31.w3"}]


def test_the_graph_does_not_depend_on_the_samples_shape_or_values() -> None:
    model = Llama(depth=1)
    small = trace(model, torch.zeros(1, 2, dtype=torch.long))
    assert trace(model, torch.randint(VOCABULARY, (3, 7))) == small
