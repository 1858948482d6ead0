from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.infer.tiny_policy import GRIPPER, HEAD, frames, states, tiny_policy
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Guide
from vla_mot.infer.inference import Question, SimulatedInference
from vla_mot.infer.latents import FrameLatents
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session

TASKS = ("pick the red block", "pick the blue block")


class Watched(Policy):
    """A policy that also remembers what it was asked to predict from."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, policy.spec)
        self.asked: list[dict[str, Tensor]] = []

    def predict(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        instructions: Sequence[str],
        noise: Tensor,
        guide: Guide | None = None,
        **options: Any,
    ) -> ActionChunk:
        self.asked.append({**images, "state": state, "noise": noise})
        return super().predict(images, state, instructions, noise, guide, **options)


@pytest.fixture
def watched(policy) -> Watched:
    return Watched(policy)


def run(session: Session, rows: int, steps: int) -> Tensor:
    """Actions `(steps, B, D)` of B robots with their own pictures, states and instructions."""
    told = [TASKS[row % 2] for row in range(rows)]
    return torch.stack([session.act(frames(rows, t), states(rows, t), told) for t in range(steps)])


def test_a_new_chunk_is_predicted_when_its_actions_are_used_up(watched):
    run(Session(watched, [0]), rows=1, steps=7)
    assert len(watched.asked) == 3  # at steps 0, 3 and 6: n_action_steps is 3 of a chunk of 4
    assert [asked["state"][0, 1].item() for asked in watched.asked] == pytest.approx([0.3, 0.315, 0.33])


def test_the_actions_handed_out_are_the_first_of_the_chunk(policy):
    session = Session(policy, [5])
    session.remember(frames(1))
    chunk = session.predict(states(1), [TASKS[0]]).actions
    assert torch.equal(run(Session(policy, [5]), rows=1, steps=3)[:, 0], chunk[0, :3])


@pytest.mark.parametrize("step", [0, 3, 6])
def test_history_is_the_frame_of_m_steps_ago_and_the_first_frame_before(watched, step):
    run(Session(watched, [0, 1]), rows=2, steps=step + 1)
    m = watched.spec.model.offset_frames
    assert m == 3
    for key in (HEAD, GRIPPER):
        past, present = watched.asked[-1][key].unbind(1)
        assert torch.equal(past, frames(2, max(step - m, 0))[key])
        assert torch.equal(present, frames(2, step)[key])


def test_the_first_frame_stands_in_until_m_frames_were_seen():
    watched = Watched(tiny_policy(n_action_steps=1))
    run(Session(watched, [0]), rows=1, steps=6)
    seen = [asked[HEAD][:, 0] for asked in watched.asked]
    expected = [frames(1, t)[HEAD] for t in (0, 0, 0, 0, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_replaced_history_is_the_present_frame(watched):
    run(Session(watched, [0], history="present"), rows=1, steps=4)
    past, present = watched.asked[-1][HEAD].unbind(1)
    assert torch.equal(past, present) and torch.equal(present, frames(1, 3)[HEAD])


def test_history_matters_to_the_action(policy):
    past = run(Session(policy, [0]), rows=1, steps=4)
    present = run(Session(policy, [0], history="present"), rows=1, steps=4)
    assert torch.equal(past[:3], present[:3])  # the first frame is its own history
    assert not torch.allclose(past[3], present[3], atol=1e-4)


def test_an_unknown_history_is_refused(policy):
    with pytest.raises(ConfigError, match="past, present, got 'future'"):
        Session(policy, [0], history="future")


def test_robots_in_a_batch_act_as_they_would_alone(policy):
    """Fails when noise, pictures or instructions of one robot reach another."""
    together = run(Session(policy, [11, 12, 13]), rows=3, steps=4)
    for row, seed in enumerate((11, 12, 13)):
        alone = Session(policy, [seed])
        for step in range(4):
            cameras = {key: image[row] for key, image in frames(3, step).items()}
            action = alone.act(cameras, states(3, step)[row], TASKS[row % 2])
            assert torch.allclose(action, together[step, row], atol=1e-5)


def test_the_seed_is_what_makes_an_episode_differ(policy):
    first, again, other = (run(Session(policy, [seed]), rows=1, steps=4) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-4)


def test_noise_is_new_for_every_chunk(watched):
    run(Session(watched, [4, 4]), rows=2, steps=4)
    first, second = (asked["noise"] for asked in watched.asked)
    assert torch.equal(first[0], first[1]) and not torch.allclose(first, second)


def test_robots_that_are_kept_go_on_as_if_nothing_had_happened(policy):
    """Dropped in the middle of a chunk, and in another order."""
    rows, seeds = [2, 0], [11, 12, 13]
    whole = run(Session(policy, seeds), rows=3, steps=6)
    session = Session(policy, seeds)
    run(session, rows=3, steps=2)
    session.keep(rows)
    assert session.foresight is not None and session.foresight.shape[0] == 2
    told = [TASKS[row % 2] for row in rows]
    for step in range(2, 6):
        cameras = {key: image[rows] for key, image in frames(3, step).items()}
        action = session.act(cameras, states(3, step)[rows], told)
        assert torch.allclose(action, whole[step, rows], atol=1e-5)


def test_a_camera_that_is_not_there_is_named(policy):
    with pytest.raises(ConfigError, match=f"expects cameras {GRIPPER}; got {HEAD}"):
        Session(policy, [0]).act({HEAD: frames(1)[HEAD]}, states(1), TASKS[0])


def test_a_camera_that_falls_silent_is_named(policy):
    """An old picture must not stand in for the missing one."""
    session = Session(policy, [0])
    run(session, rows=1, steps=3)
    with pytest.raises(ConfigError, match=GRIPPER):
        session.act({HEAD: frames(1)[HEAD]}, states(1), TASKS[0])


def test_as_many_seeds_as_robots_are_needed(policy):
    with pytest.raises(ConfigError, match=r"1 seed.* 2 robots"):
        Session(policy, [0]).act(frames(2), states(2), TASKS[0])


def test_a_session_may_understand_less_often_than_it_acts():
    policy = tiny_policy(n_action_steps=1)
    slow = policy.compile("static", understanding_every=2)
    exact, stale = Session(policy, [0]), Session(slow, [0])
    found = []
    for step in range(4):
        pictures, state = frames(1, step), states(1, step)
        found.append(torch.allclose(*(s.act(pictures, state, "pick it") for s in (exact, stale)), atol=1e-5))
    assert found == [True, False, True, False]
    assert stale.timing.report().oldest_understanding == 1


def test_a_session_may_understand_ahead_of_its_next_calls():
    policy = tiny_policy(n_action_steps=1)
    session = Session(policy.compile("static", understanding_ahead=True), [0])
    ages = []
    for step in range(4):
        session.act(frames(1, step), states(1, step), "pick it")
        ages.append(session.policy.engine.understanding_age)
    assert ages == [0, 0, 0, 0], "renewed after every answer"
    assert session.timing.report().oldest_understanding == 1


class Counted(Policy):
    """A policy that counts the frames it encodes."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, policy.spec)
        self.encoded = 0

    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        self.encoded += 1
        return super().encode(images)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_remembered_latents_are_those_of_the_frames_and_each_is_encoded_once(every):
    policy = tiny_policy(n_action_steps=every)
    counted = Counted(policy)
    plain, remembering = Session(policy, [0, 1]), Session(counted, [0, 1], remember_latents=True)
    assert torch.allclose(run(remembering, 2, 9), run(plain, 2, 9), atol=1e-5)
    asked = {step for step in range(9) if step % every == 0}
    history = {step for step in range(9) if (step + 3) % every == 0}  # of a question asked m = 3 steps later
    assert counted.encoded == len(asked | history | {0})


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_a_question_encodes_the_present_alone_however_late_its_answers_are(every, delay):
    """What will be history was encoded before, also where delays decide when the next question is asked."""
    counted = Counted(tiny_policy(n_action_steps=every))
    late = SimulatedInference(counted, delay)
    encoded = []
    put = Question.put

    def counting(self: Question, policy: Policy) -> ActionChunk:
        before = counted.encoded
        chunk = put(self, policy)
        encoded.append(counted.encoded - before)
        return chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Question, "put", counting)
        run(Session(counted, [0, 1], inference=late, remember_latents=True), 2, 24)
    assert len(encoded) >= 6
    assert set(encoded[3:]) <= {0, 1}, "before the first answer nobody knows how long a chunk is"


def test_slots_without_a_camera_are_not_encoded():
    policy = tiny_policy(positions="released")
    seen = []
    encode = policy.model.encode_frames
    policy.model.encode_frames = lambda pictures: seen.append(pictures.shape[1]) or encode(pictures)
    cameras = len(policy.robot.embodiment.present_cameras)
    assert cameras < policy.spec.model.num_views
    plain, remembering = Session(policy, [0]), Session(policy, [0], remember_latents=True)
    expected = run(plain, 1, 3)
    seen.clear()
    assert torch.allclose(run(remembering, 1, 3), expected, atol=1e-5)
    assert set(seen) == {cameras}


def test_remembered_latents_follow_the_robots_that_are_kept():
    policy = tiny_policy(n_action_steps=1)
    plain, remembering = Session(policy, [0, 1]), Session(policy, [0, 1], remember_latents=True)
    for session in (plain, remembering):
        run(session, 2, 3)
        session.keep([1])
    pictures = {key: value[1:] for key, value in frames(2, 3).items()}
    told = (pictures, states(2, 3)[1:], [TASKS[1]])
    assert torch.allclose(remembering.act(*told), plain.act(*told), atol=1e-5)


def test_pictures_and_states_that_the_caller_fills_again_stay_what_they_were():
    policy = tiny_policy(n_action_steps=1)
    plain, reusing = Session(policy, [0]), Session(policy, [0])
    pictures, state = frames(1), states(1)
    for step in range(5):
        for key, value in frames(1, step).items():
            pictures[key].copy_(value)
        state.copy_(states(1, step))
        told = (frames(1, step), states(1, step), "pick it")
        assert torch.equal(reusing.act(pictures, state, "pick it"), plain.act(*told))


def test_robots_in_another_order_do_not_get_each_others_understanding():
    slow = tiny_policy(n_action_steps=1).compile("static", understanding_every=3)
    session = Session(slow, [0, 1])
    for step in range(2):
        session.act(frames(2, step), states(2, step), "pick it")
    assert slow.engine.understanding_age == 1
    session.keep([1, 0])
    session.act({key: value.flip(0) for key, value in frames(2, 2).items()}, states(2, 2).flip(0), "pick it")
    assert slow.engine.understanding_age == 0


def test_latents_that_were_encoded_for_other_rows_are_not_remembered(policy):
    """A question under way goes on with the robots that it is of."""
    latents, own = FrameLatents(), {key: value[1:] for key, value in frames(2).items()}
    before = latents.of(policy, 0, frames(2))
    kept = latents.kept(torch.tensor([1]))
    assert latents.of(policy, 0, frames(2)) is before
    assert torch.equal(kept.of(policy, 0, own), before[1:])
    latents.of(policy, 1, frames(2))
    assert len(kept.of(policy, 1, own)) == 1


@pytest.mark.parametrize("delay", [0, 3])
def test_actions_are_the_callers_own(delay):
    """Whoever scales them in place changes no later one, not even where the last one is commanded again."""
    policy = tiny_policy()
    plain, scaled = (Session(policy, [0], inference=SimulatedInference(policy, delay)) for _ in range(2))
    for step in range(10):
        expected, action = (s.act(frames(1, step), states(1, step), TASKS[0]) for s in (plain, scaled))
        assert torch.equal(action, expected)
        action.mul_(57)
    assert plain.timing.report().starved > 0 or delay == 0


@pytest.mark.parametrize("action_mode", ["delta", "abs"])
def test_a_state_that_is_not_finite_is_refused(action_mode):
    policy = tiny_policy(action_mode=action_mode)
    state = states(1)
    state[0, 3] = torch.nan
    with pytest.raises(ConfigError, match=r"the state must be finite, got .*nan"):
        Session(policy, [0]).act(frames(1), state, TASKS[0])
    late = Session(policy, [0], inference=SimulatedInference(policy, 4))
    state = states(1)
    with pytest.raises(ConfigError, match="the state must be finite"):
        late.act(frames(1), state * torch.nan, TASKS[0])
    late.act(frames(1), state, TASKS[0])
    with pytest.raises(ConfigError, match=r"held still at .*nan"):
        late.act(frames(1), state * torch.nan, TASKS[0])


def test_actions_that_are_not_finite_are_refused():
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.action.out_proj.weight[0, 0] = torch.inf
    with pytest.raises(ConfigError, match="actions are not finite, though the state is"):
        Session(policy, [0]).act(frames(1), states(1), TASKS[0])


def test_pictures_of_another_range_are_refused(policy):
    floats = {key: image.float() for key, image in frames(1).items()}
    with pytest.raises(ConfigError, match=rf"{HEAD}: pictures are uint8, .* got torch.float32 in \[0, 255\]"):
        Session(policy, [0]).act(floats, states(1), TASKS[0])
    Session(policy, [0]).act({key: image / 255 for key, image in floats.items()}, states(1), TASKS[0])
