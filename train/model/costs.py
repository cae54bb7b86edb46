"""The cost of a run by arithmetic: parameters, bytes on a device, bytes sent, FLOPs, GPU-hours.

Conventions: a multiply-add is 2 FLOPs; the backward pass costs twice the forward pass; the whole
attention matrix counts, although half of it is masked (as in torchtitan's
``get_nparams_and_flops``). Bytes are those of the first rank, which holds the most.
"""

from dataclasses import dataclass

from train.model import image_costs
from train.model.image_scales import ImageScale
from train.model.scale import Weight
from train.model.scales import LLAMA3_VOCABULARY, VOCAB_SIZE, AnyScale, Scale

FLOAT32, FLOAT64, INT64 = 4, 8, 8

# NVIDIA H100 SXM, dense bf16, from its data sheet.
H100_FLOPS = 989e12
# What torchtitan reports for LLaMA-3 8B on H100s with FSDP2 and compile (arXiv 2410.06511).
USUAL_MFU = 0.4
# Images of a probe by default: an MLP, and the head of a ViT, measure on one row per image.
PROBE_IMAGES = 32


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis: replicas of HSDP, shards of FSDP, and tensor parallelism."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("replicate", "shard", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"a mesh needs at least 1 device per axis, got {name}={getattr(self, name)}"
                )


@dataclass(frozen=True)
class Probe:
    """What alignment is measured on: whole sequences are run, and some of their tokens are used.

    The defaults are those of ``--maxp.probe_sequences``, ``--maxp.probe_tokens`` and
    ``--maxp.probe``.
    """

    sequences: int = 4
    tokens: int = 32
    itemsize: int = FLOAT32
    """Bytes of an activation: 4, or 2 where the model computes in bfloat16."""
    fresh: bool = True
    """Whether each measurement takes new text, whose initial activations it has to compute."""

    def rows(self, scale: Scale) -> int:
        """Tokens on which sites with a weight are measured."""
        return min(self.tokens, self.sequences * scale.seq_len)

    def positions(self, scale: Scale) -> int:
        """Positions of each sequence on which QK^T is measured."""
        return min(max(1, self.tokens // self.sequences), scale.seq_len)


def local_size(weight: Weight, mesh: Mesh) -> int:
    """Entries that the first rank holds."""
    if weight.experts > 1:  # FSDP splits the experts
        return _part(weight.experts, mesh.shard) * weight.out * weight.into
    rows, columns = local_shape(weight, mesh)
    return rows * columns


def local_shape(weight: Weight, mesh: Mesh) -> tuple[int, int]:
    """(rows, columns) of a matrix that the first rank holds: TP first, then FSDP on rows."""
    rows, columns = weight.out, weight.into
    if weight.tensor_dim == 0:
        rows = _part(rows, mesh.tensor)
    else:
        columns = _part(columns, mesh.tensor)
    return _part(rows, mesh.shard), columns


@dataclass(frozen=True)
class Memory:
    """Bytes on the first rank."""

    parameters: int
    gradients: int
    optimizer: int
    w0: int
    """The initial weights; on fresh text those of the whole model."""
    gains: int
    """The part of ``w0`` that is kept even if weights are drawn again: the norms' gains."""
    z0: int
    probe: int

    @property
    def model(self) -> int:
        """Bytes that training keeps, with or without measuring."""
        return self.parameters + self.gradients + self.optimizer

    def kept(self, *, resample_w0: bool) -> int:
        """Bytes that measuring keeps; W0 only where it is not drawn again."""
        return self.z0 + self.probe + (self.gains if resample_w0 else self.w0)

    def share(self, *, resample_w0: bool) -> float:
        """`kept` as a part of `model`."""
        return self.kept(resample_w0=resample_w0) / self.model


def vocabulary(scale: Scale) -> int:
    """Size of the scale's default tokenizer."""
    return VOCAB_SIZE if scale.on_corpus else LLAMA3_VOCABULARY


def embedding(scale: Scale) -> Weight:
    return Weight("tok_embeddings", vocabulary(scale), scale.dim)


def head(scale: Scale) -> Weight:
    return Weight("lm_head", vocabulary(scale), scale.dim)


def measured_weights(scale: Scale) -> list[Weight]:
    """The weights whose alignment is measured: those of all linear layers but routed experts."""
    return [*(weight for weight in scale.block_weights if weight.measured), head(scale)]


def parameters(scale: Scale) -> tuple[int, int]:
    """Parameters of the whole model: (embedding and head, all others)."""
    tables = 1 if scale.tied else 2
    return tables * vocabulary(scale) * scale.dim, scale.non_embedding_params


def memory(
    scale: Scale, mesh: Mesh | None = None, probe: Probe | None = None, *, muon: bool = False
) -> Memory:
    """Bytes that training in float32 and measuring keep on the first rank.

    AdamW trains everything, or with ``muon`` all but the matrices of hidden layers.
    """
    mesh, probe = mesh or Mesh(), probe or Probe()
    measured = sum(local_size(weight, mesh) for weight in measured_weights(scale))
    weights = [*scale.block_weights, head(scale)]
    weights += [] if scale.tied else [embedding(scale)]
    gains = sum(_part(rows, mesh.shard) * columns for rows, columns in scale.vectors)
    held = sum(local_size(weight, mesh) for weight in weights) + gains
    tensors = len(weights) + len(scale.vectors)
    # Muon has one moment less, and no step count.
    saved = muon * sum(local_size(weight, mesh) + 1 for weight in scale.block_weights)
    return Memory(
        parameters=FLOAT32 * held,
        gradients=FLOAT32 * held,
        # Two moments per entry, and a step count per tensor.
        optimizer=FLOAT32 * (2 * held + tensors - saved),
        w0=FLOAT32 * (held if probe.fresh else measured),
        gains=FLOAT32 * gains if probe.fresh else 0,
        z0=0 if probe.fresh else z0_bytes(scale, probe),
        # Tokens, positions and labels.
        probe=0 if probe.fresh else 3 * INT64 * probe.sequences * scale.seq_len,
    )


def z0_bytes(scale: Scale, probe: Probe) -> int:
    """The initial inputs of the measured sites on a fixed probe: the same on every rank.

    q, k and v share an input, and so do w1 and w3. QK^T keeps q and k, with the keys repeated for
    every query head.
    """
    rows, positions = probe.rows(scale), probe.sequences * probe.positions(scale)
    inputs = rows * sum(weight.into for weight in measured_weights(scale) if weight.new_input)
    scores = positions * scale.n_layers * 2 * scale.n_heads * scale.head_dim
    return probe.itemsize * (inputs + scores)


def communicated(scale: Scale, mesh: Mesh | None = None, probe: Probe | None = None) -> int:
    """Bytes that the first rank sends in the reductions of one measurement.

    The forward pass also gathers weights, as every forward pass of a sharded model does.
    """
    mesh, probe = mesh or Mesh(), probe or Probe()
    weights, rows = measured_weights(scale), probe.rows(scale)
    # Per weight and split mesh axis: three sums of squares per token and two of weights, float64.
    squares = len(weights) * (3 * rows + 2) * FLOAT64
    axes = (mesh.shard > 1) + (mesh.tensor > 1)
    products = 0
    if mesh.tensor > 1:  # the products themselves, where columns are split
        split = [weight for weight in weights if weight.tensor_dim == 1]
        products = sum(3 * rows * local_shape(weight, mesh)[0] * FLOAT32 for weight in split)
    return axes * squares + products


def step_flops(scale: AnyScale) -> int:
    """FLOPs of one optimizer step on the global batch, over all devices."""
    if isinstance(scale, ImageScale):
        return scale.global_batch_size * image_costs.training_flops(scale)
    tokens = scale.global_batch_size * scale.seq_len
    return 6 * tokens * (_active(scale) + _size(head(scale)) + _attention(scale))


def measurement_flops(scale: AnyScale, probe: Probe | None = None) -> int:
    """FLOPs of the matrix products of one measurement, on a rank that holds the whole model.

    Subtracting and squaring weights is not counted: a few operations per entry, against 6 per entry
    and token.
    """
    probe = probe or Probe()
    if isinstance(scale, ImageScale):
        return image_costs.measurement_flops(scale, PROBE_IMAGES, probe.tokens)
    rows, run = probe.rows(scale), probe.sequences * scale.seq_len
    forward = 2 * run * (_active(scale) + _attention(scale))
    forward += 2 * probe.sequences * _size(head(scale))  # the head runs on one token
    if probe.fresh:  # with the initial weights as well
        forward *= 2
    products = 3 * 2 * rows * sum(_size(weight) for weight in measured_weights(scale))
    pairs = scale.n_layers * probe.sequences * probe.positions(scale) ** 2
    bilinear = 3 * 2 * pairs * scale.n_heads * scale.head_dim
    return forward + products + bilinear


def _active(scale: Scale) -> int:
    """Multiplications per token in all blocks: of experts, those that the token is sent to."""
    return sum(w.chosen * _size(w) for w in scale.block_weights)


def _size(weight: Weight) -> int:
    return weight.out * weight.into


def _attention(scale: Scale) -> int:
    """Multiplications per token of scores and of mixing values, over the whole sequence."""
    heads = scale.n_layers * scale.n_heads
    return heads * (scale.head_dim + scale.value_dim) * scale.seq_len


def training_flops(scale: AnyScale, steps: int, solve_interval: int | None = None) -> int:
    """FLOPs of a run that measures every ``solve_interval`` steps; None never measures."""
    measurements = 0 if solve_interval is None else steps // solve_interval
    return steps * step_flops(scale) + measurements * measurement_flops(scale)


def gpu_hours(
    scale: AnyScale,
    steps: int,
    gpus: int,
    *,
    mfu: float = USUAL_MFU,
    peak_flops: float = H100_FLOPS,
    solve_interval: int | None = None,
) -> float:
    """GPU-hours of a run at a given utilisation of the GPUs.

    Args:
        scale, steps: those of the run.
        gpus: the number of GPUs. Each takes whole sequences, or images, so if the global batch does
            not divide evenly, all wait for the GPUs that take one more.
        mfu: model FLOPs utilisation, the part of ``peak_flops`` that training reaches.
        peak_flops: FLOP/s of one GPU.
        solve_interval: steps between measurements, on fresh text; None for a method that does not
            measure.

    Raises:
        ValueError: no steps or GPUs, or an ``mfu`` outside (0, 1].
    """
    if steps < 1 or gpus < 1:
        raise ValueError(f"a run needs at least 1 step and 1 GPU, got {steps} and {gpus}")
    if not (0 < mfu <= 1 and peak_flops > 0):
        raise ValueError(f"mfu must be in (0, 1] and peak_flops positive: {mfu}, {peak_flops}")
    batch = scale.global_batch_size
    waiting = _part(batch, gpus) * gpus / batch
    return waiting * training_flops(scale, steps, solve_interval) / (mfu * peak_flops) / 3600


def _part(size: int, parts: int) -> int:
    """The size of the first of ``parts``, as `torch.chunk` splits."""
    return -(-size // parts)
