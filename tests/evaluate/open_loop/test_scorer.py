"""A policy on made-up moments: what is scored, what is kept to be drawn, and what is left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluate.open_loop.moments import recorded
from tests.evaluate.test_foresight import BRIGHT, DARK, foresees, grey
from tests.infer.tiny_policy import GRIPPER, HEAD, tiny_policy
from vla_mot.evaluate.open_loop.pictures import joined_pictures
from vla_mot.evaluate.open_loop.recorded import Recorded, hold_still, predict
from vla_mot.evaluate.open_loop.results import DatasetResult
from vla_mot.evaluate.open_loop.scorer import DatasetScorer, Subject
from vla_mot.evaluate.picture_scores import peak_ratio, structural_similarity
from vla_mot.infer.engine import EngineConfig
from vla_mot.infer.policy import Policy


def score(policy: Policy, *batches: Recorded, pictures: bool = True, drawn: int = 0) -> DatasetResult:
    subject = Subject(policy, "folder/set", 10.0, 3, 4, (0, 1), pictures=pictures)
    scorer = DatasetScorer(subject, {episode: torch.zeros(20, 3) for episode in range(drawn)})
    for batch in batches:
        scorer.add(batch)
    return scorer.result()


def test_errors_are_those_of_the_predicted_chunks():
    policy, seen = tiny_policy(), recorded()
    found = score(policy, seen, recorded(seed=1))
    assert (found.moments, found.errors.moments, found.errors.episodes) == (10, 10, 2)
    error = [predict(policy, one).actions - one.actions for one in (seen, recorded(seed=1))]
    still = [hold_still(policy.robot, one) - one.actions for one in (seen, recorded(seed=1))]
    mask = torch.cat([seen.step_mask, seen.step_mask])
    for place in range(3):
        single = found.errors.single(place)
        for method, off in (("policy", error), ("hold", still)):
            real = torch.cat(off)[..., place][mask]
            numbers = found.errors.score(single, method)
            assert numbers.mse.value == pytest.approx(float(real.square().mean()), rel=1e-5)
            assert numbers.mae.value == pytest.approx(float(real.abs().mean()), rel=1e-5)
            assert numbers.count == int(mask.sum()) == 36


def plain(past: int, present: int, future: int) -> Recorded:
    """Moments whose pictures have one grey each."""
    images = torch.stack([grey(past, 5), grey(present, 5)], dim=1)
    return replace(
        recorded(),
        images=dict.fromkeys((HEAD, GRIPPER), images),
        future=dict.fromkeys((HEAD, GRIPPER), grey(future, 5)),
    )


def test_foresight_beside_copying_by_hand():
    """One grey is foreseen everywhere, so that only brightness differs."""
    policy = tiny_policy()
    model = foresees((DARK + BRIGHT) / 2)
    found = score(Policy(model, policy.spec), plain(DARK, DARK, BRIGHT)).pictures
    assert found.cameras == ("head", "gripper")
    assert found.pictures("head") == 4, "the last moment has no future"
    step = (BRIGHT - DARK) / 255
    for camera in found.cameras:
        foreseen, copied = (found.score(camera, method) for method in ("foresight", "copy_last"))
        assert copied.psnr.value == pytest.approx(peak_ratio(step**2), abs=1e-3)
        assert foreseen.psnr.value == pytest.approx(peak_ratio((step / 2) ** 2), abs=1e-2)
        expected = structural_similarity(*(grey(level, 1).float() / 255 for level in (DARK, BRIGHT)))
        assert copied.ssim.value == pytest.approx(float(expected), abs=1e-6)
        assert found.score(camera, "reconstructed").psnr.value > 60, "one grey survives the tokenizer"


def test_a_picture_that_does_not_change_is_copied_exactly():
    found = score(tiny_policy(), plain(DARK, DARK, DARK)).pictures
    assert found.score("head", "copy_last").psnr.value == np.inf
    assert found.score("head", "copy_last").ssim.value == pytest.approx(1)


def test_datasets_without_a_camera_count_nothing_for_it():
    a = score(tiny_policy(), recorded()).pictures
    b = type(a)(("gripper", "side"), a.sums[:, ::-1] + 1, a.counts)
    both = joined_pictures([a, b])
    assert both.cameras == ("head", "gripper", "side")
    assert [both.pictures(camera) for camera in both.cameras] == [4, 8, 4]
    assert both.score("head", "foresight").psnr.value == pytest.approx(
        a.score("head", "foresight").psnr.value
    )
    assert both.score("side", "foresight").ssim.value == pytest.approx(
        b.score("side", "foresight").ssim.value
    )


def test_episodes_are_kept_to_be_drawn():
    policy, seen = tiny_policy(), recorded()
    found = score(policy, seen, drawn=1)
    (trace,) = found.traces
    assert (trace.episode, trace.task, trace.actions.shape) == (0, "pick block 0", (20, 3))
    assert [chunk.frame for chunk in trace.chunks] == [0, 8, 16]
    assert [len(chunk.predicted) for chunk in trace.chunks] == [4, 4, 2], "without what lies behind the end"
    assert np.array_equal(trace.chunks[1].predicted, predict(policy, seen).actions[2].numpy())
    assert np.array_equal(trace.chunks[2].held, hold_still(policy.robot, seen)[4, :2].numpy())
    first, _, last = trace.moments
    assert list(first.views) == ["head", "gripper"]
    assert np.array_equal(first.views["head"]["past"], seen.images[HEAD][0, 0].movedim(0, -1).numpy())
    assert np.array_equal(first.views["gripper"]["truth"], seen.future[GRIPPER][0].movedim(0, -1).numpy())
    assert set(last.views["head"]) == {"past", "copy_last", "foresight"}, "it has no future"
    assert first.moved > 0


def test_what_is_not_foreseen_is_said():
    blind = tiny_policy().with_engine(EngineConfig("static", foresight=False))
    found = score(blind, recorded(), drawn=1)
    assert found.pictures is None
    assert "foresees nothing" in found.notes[0]
    assert set(found.traces[0].moments[0].views["head"]) == {"past", "copy_last", "truth"}
    assert "foresees nothing" in score(tiny_policy(generation=None, foresight=None), recorded()).notes[0]
    assert "it was not asked for" in score(tiny_policy(), recorded(), pictures=False).notes[0]
    short = replace(recorded(), future_valid=torch.zeros(5, dtype=torch.bool))
    assert "no moment has a frame 3 frames later" in score(tiny_policy(), short).notes[0]
