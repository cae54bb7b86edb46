"""What torchtitan needs to build and shard each decoder."""

from typing import Any, NamedTuple

from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.models.deepseek_v3 import parallelize_deepseekv3
from torchtitan.models.deepseek_v3.state_dict_adapter import DeepSeekV3StateDictAdapter
from torchtitan.models.gpt_oss import parallelize_gptoss
from torchtitan.models.gpt_oss.state_dict_adapter import GptOssStateDictAdapter
from torchtitan.models.llama3 import Llama3StateDictAdapter, parallelize_llama
from torchtitan.models.qwen3 import parallelize_qwen3
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec

from train.model.decoders import model_config
from train.model.scale import Family, Scale


class _Parts(NamedTuple):
    """torchtitan's name of a model, how it is sharded, and how its checkpoints are renamed."""

    name: str
    parallelize: Any
    adapter: Any


PARTS: dict[Family, _Parts] = {
    "llama3": _Parts("llama3", parallelize_llama, Llama3StateDictAdapter),
    "qwen3": _Parts("qwen3", parallelize_qwen3, Qwen3StateDictAdapter),
    "deepseek": _Parts("deepseek_v3", parallelize_deepseekv3, DeepSeekV3StateDictAdapter),
    "gptoss": _Parts("gpt_oss", parallelize_gptoss, GptOssStateDictAdapter),
}


def model_spec(scale: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> ModelSpec:
    """What torchtitan needs to build and shard the model of a scale.

    Args, Raises: as `train.model.decoders.model_config`.
    """
    parts = PARTS[scale.family]
    return ModelSpec(
        name=parts.name,
        flavor=scale.name,
        model=model_config(scale, vocab_size, fuse_qkv=fuse_qkv),
        parallelize_fn=parts.parallelize,
        pipelining_fn=None,
        post_optimizer_build_fn=(
            None if scale.experts is None else register_moe_load_balancing_hook
        ),
        state_dict_adapter=parts.adapter,
    )
