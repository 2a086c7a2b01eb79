"""What ranks are asked to do: train in stages, with everything compressed or nothing."""

import hashlib
import io
import os
import signal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from phalanx.compression import (
    ErrorFeedback,
    SampleQuantization,
    TensorStates,
    TwoStage,
    Uncompressed,
    UniformQuantization,
    simulate,
)
from phalanx.data import Digits
from phalanx.models import MLP
from phalanx.optimizers import OneBitAdam
from phalanx.pipeline import ActivationDifference, CompressedPipeline, SimulatedPipeline, split
from phalanx.randomness import seeded

SAMPLES, BATCH, WIDTH = 16, 8, 12
GRADIENTS = ErrorFeedback(UniformQuantization(bits=4, bucket_size=32))
FEW_BITS = ErrorFeedback(TwoStage(UniformQuantization(bits=4)))  # of momenta, in buckets of 512


def layers():
    torch.manual_seed(7)
    parts = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), *parts, nn.Linear(WIDTH, 3))


def data():
    inputs = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def batches(steps, replica=0):
    """Ids in a new order every epoch, each replica in an order of its own."""
    for step in range(steps):
        epoch, part = divmod(step, SAMPLES // BATCH)
        order = torch.randperm(
            SAMPLES, generator=torch.Generator().manual_seed(epoch + 50 * replica)
        )
        yield order[part * BATCH : (part + 1) * BATCH]


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


def optimizer(module):
    return torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)


def digest(state):
    """Of all tensors in the buffers of a side."""
    found = hashlib.blake2b()
    for name, rows in sorted(state["buffer"].items()):
        found.update(name.encode() + rows.contiguous().numpy().tobytes())
    return found.hexdigest()


def flat(module):
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def train(num_stages, steps, *, stop_at=None, replicated=False, **options):
    """Losses, weights of the own stage, traffic and digests; stopped and resumed in between."""
    rank, size = dist.get_rank(), dist.get_world_size()
    group, replicas, replica = None, None, 0
    if replicated:
        starts = range(0, size, num_stages)
        groups = [dist.new_group(list(range(start, start + num_stages))) for start in starts]
        beside = [dist.new_group([start + one for start in starts]) for one in range(num_stages)]
        replica = rank // num_stages
        group, replicas = groups[replica], beside[rank % num_stages]
        options |= {"gradients": GRADIENTS, "replicas": replicas}

    def make():
        stages = split(layers(), num_stages)
        inputs, _ = data()
        found = CompressedPipeline(
            stages, inputs[:1], loss, num_samples=SAMPLES, group=group, **options
        )
        return found, optimizer(found.module)

    pipeline, steps_of = make()
    inputs, targets = data()
    losses, same = [], []
    for step, ids in enumerate(batches(steps, replica)):
        if step == stop_at:
            file = io.BytesIO()
            parts = pipeline.state_dict(), pipeline.module.state_dict(), steps_of.state_dict()
            torch.save(parts, file)
            file.seek(0)
            pipeline, steps_of = make()
            saved = torch.load(file, weights_only=True)
            for one, state in zip((pipeline, pipeline.module, steps_of), saved, strict=True):
                one.load_state_dict(state)
        steps_of.zero_grad()
        found = pipeline.step(ids, inputs[ids], targets[ids])
        steps_of.step()
        losses.append(None if found is None else found.item())
        same.append([digest(one.state_dict()) if one else None for one in pipeline._ends])
    outputs = pipeline.predict(SAMPLES, inputs)
    return losses, flat(pipeline.module), pipeline.traffic, same, outputs


def train_by_torch(num_stages, steps, *, num_microbatches=1, schedule="gpipe"):
    """What torch's own stages do."""
    stages = split(layers(), num_stages)
    rank = dist.get_rank()
    stage = PipelineStage(stages[rank], rank, num_stages, torch.device("cpu"))
    kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[schedule]
    scheduled = kind(stage, num_microbatches, loss_fn=loss)
    steps_of = optimizer(stages[rank])
    inputs, targets = data()
    for ids in batches(steps):
        steps_of.zero_grad()
        scheduled.step(
            *((inputs[ids],) if rank == 0 else ()),
            target=targets[ids] if rank == num_stages - 1 else None,
        )
        steps_of.step()
    return flat(stages[rank])


def train_alone(num_stages, steps, *, num_replicas=1, **options):
    """The same in one process: losses, stages' weights, and the simulated pipelines."""
    pipelines, optimizers = [], []
    inputs, targets = data()
    for _ in range(num_replicas):
        stages = split(layers(), num_stages)
        pipelines.append(
            SimulatedPipeline(stages, inputs[:1], loss, num_samples=SAMPLES, **options)
        )
        optimizers.append([optimizer(stage) for stage in stages])
    memories = [[TensorStates()] * num_replicas for _ in range(num_stages)]
    losses = []
    for every in zip(*(batches(steps, replica) for replica in range(num_replicas)), strict=True):
        found = []
        for ids, pipeline in zip(every, pipelines, strict=True):
            for stage in pipeline.stages:
                stage.zero_grad()
            found.append(pipeline.step(ids, inputs[ids], targets[ids]).item())
        losses.append(found)
        if num_replicas > 1:
            for place in range(num_stages):
                memories[place] = _average([p.stages[place] for p in pipelines], memories[place])
        for one in optimizers:
            for steps_of in one:
                steps_of.step()
    return losses, [[flat(stage) for stage in one.stages] for one in pipelines], pipelines


def train_end_to_end(*, compressed):
    """Two pipelines of two stages on digits, with everything compressed that crosses, or nothing.

    Returns the accuracy, on last stages, weights of the own stage, and bytes of activations and
    gradients that the stage before, or this one, has sent.
    """
    replica, place = divmod(dist.get_rank(), 2)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    replicas = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    splits = Digits().load()
    inputs, targets = (one[replica:256:2] for one in splits.train.tensors)
    with seeded(3, "weights"):
        layers = MLP((1, 8, 8), 10, hidden=[32, 32]).layers
    pipeline = CompressedPipeline(
        split(layers, 2),
        inputs[:1],
        loss,
        num_samples=len(inputs),
        forward=ActivationDifference(3 if compressed else 32),
        backward=SampleQuantization(6 if compressed else 32),
        group=pairs[replica],
    )
    steps_of = OneBitAdam(
        pipeline.module.named_parameters(),
        lr=0.01,
        freeze_step=8,
        compressor=FEW_BITS if compressed else Uncompressed(),
        group=replicas[place],
    )
    for epoch in range(9):
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
        for ids in order.split(32):
            steps_of.zero_grad()
            pipeline.step(ids, inputs[ids], targets[ids])
            steps_of.step()
    tests, answers = splits.test.tensors
    outputs = pipeline.predict(len(tests), tests)
    accuracy = None if outputs is None else (outputs.argmax(dim=1) == answers).float().mean().item()
    sent = sum(one.activation_bytes + one.gradient_bytes for one in pipeline.traffic)
    return accuracy, flat(pipeline.module), sent


def _average(stages, memories):
    rows = [{name: w.grad for name, w in stage.named_parameters()} for stage in stages]
    means, memories = simulate(GRADIENTS, rows, memories)
    for stage, mean in zip(stages, means, strict=True):
        for name, weight in stage.named_parameters():
            weight.grad = mean[name]
    return memories


def train_until_killed(num_stages, victim):
    """One rank dies in the third step; what the others see."""
    inputs, targets = data()
    pipeline = CompressedPipeline(
        split(layers(), num_stages), inputs[:1], loss, num_samples=SAMPLES
    )
    for step, ids in enumerate(batches(4)):
        if step == 2 and dist.get_rank() == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        pipeline.step(ids, inputs[ids], targets[ids])


def with_other_ids():
    """A step of which the last stage is told other samples; then one of which it is not."""
    inputs, targets = data()
    last = dist.get_rank() == dist.get_world_size() - 1
    made = split(layers(), dist.get_world_size())
    pipeline = CompressedPipeline(made, inputs[:1], loss, num_samples=SAMPLES)
    ids = torch.arange(BATCH)
    try:
        pipeline.step(ids + last, inputs[ids], targets[ids])
    except ValueError as error:
        found = error
    pipeline.step(ids, inputs[ids], targets[ids])
    return found
