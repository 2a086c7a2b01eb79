"""What needs no second process: a pipeline of one stage, and arguments that are refused."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from phalanx.compression import ErrorFeedback, UniformQuantization
from phalanx.pipeline import CompressedPipeline
from pipeline import cases

ALL = torch.arange(cases.SAMPLES)


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def made(stages=None, **options):
    inputs, _ = cases.data()
    stages = [cases.layers()] if stages is None else stages
    return CompressedPipeline(
        stages, inputs[:1], cases.loss, **({"num_samples": cases.SAMPLES} | options)
    )


def test_one_stage_is_the_model(alone, subtests):
    for schedule in ["gpipe", "1f1b"]:
        with subtests.test(f"{schedule}"):
            inputs, targets = cases.data()
            pipeline = made(num_microbatches=4, schedule=schedule)
            loss = pipeline.step(ALL, inputs, targets)
            model = cases.layers()
            expected = cases.loss(model(inputs), targets)
            expected.backward()
            torch.testing.assert_close(loss, expected.detach())
            for ours, theirs in zip(pipeline.module.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
            torch.testing.assert_close(pipeline.predict(cases.SAMPLES, inputs), model(inputs))
            assert pipeline.estimate == ((), 0)
            pipeline.prefetch(ALL)
            other = made()
            other.load_state_dict(pipeline.state_dict())


def test_gradients_of_one_replica_are_its_own_compressed(alone):
    compressor = ErrorFeedback(UniformQuantization(bits=4, bucket_size=32))
    inputs, targets = cases.data()
    pipeline = made(gradients=compressor, replicas=dist.group.WORLD)
    pipeline.step(ALL, inputs, targets)
    model = cases.layers()
    cases.loss(model(inputs), targets).backward()
    for ours, theirs in zip(pipeline.module.parameters(), model.parameters(), strict=True):
        assert ours.grad.equal(compressor.decode(compressor.encode(theirs.grad)))
    assert pipeline.state_dict()["gradients"]["step"] == 1


def test_what_cannot_work_is_refused(alone, subtests):
    for options, rule in [
        ({"stages": [nn.Linear(6, 3)] * 2}, "stages must be one a process, got 2 of 1 processes"),
        ({"num_microbatches": 0}, "num_microbatches must be at least 1, got 0"),
        ({"gradients": UniformQuantization()}, "gradients and replicas must be given together"),
        ({"num_epochs": 1}, "num_epochs must be at least 2"),
    ]:
        with subtests.test(f"{options}, {rule}"), pytest.raises(ValueError, match=rule):
            made(**options)


def test_what_is_missing_from_a_step_is_named(alone):
    inputs, targets = cases.data()
    pipeline = made(num_microbatches=3)
    with pytest.raises(ValueError, match="a batch must be a multiple of 3 micro-batches, got 16"):
        pipeline.step(ALL, inputs, targets)
    with pytest.raises(ValueError, match="targets must be given on the last stage, got None"):
        pipeline.step(ALL[:3], inputs[:3])
    with pytest.raises(ValueError, match="inputs must be of 3 samples on the first stage"):
        pipeline.step(ALL[:3], None, targets[:3])
    with pytest.raises(ValueError, match=r"state must be that of stage 0, got \['after', 'grad"):
        pipeline.load_state_dict({"after": {}, "gradients": {}})


class Exhausted(nn.Linear):
    def forward(self, x):
        if not x.is_meta:
            raise RuntimeError("out of memory")
        return super().forward(x)


def test_what_fails_in_the_stage_or_the_loss_is_no_neighbours_fault(alone):
    inputs, targets = cases.data()
    with pytest.raises(RuntimeError, match="failed to run forward"):
        made(stages=[Exhausted(6, 3)]).step(ALL[:4], inputs[:4], targets[:4])
    with pytest.raises(RuntimeError, match="Long"):
        made().step(ALL[:4], inputs[:4], targets[:4].int())
