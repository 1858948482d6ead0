"""The released maths, checked the same way for both released types. Test modules subclass `ReleasedMaths`."""

import json
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from vla_mot.batch import Batch, Observation
from vla_mot.flow.matching import interpolate
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.released_names import ReleasedNames
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import objective
from vla_mot.model.tokens import Tokens
from vla_mot.nn.masks import ACTION, TokenLayout, build_attn_mask

TOLERANCE = 5e-5
REAL_DIMS, CHUNK, MIDDLE = 7, 6, 96
FORESIGHT_WEIGHT = 0.01


@dataclass(frozen=True)
class Golden:
    """The model that a released checkpoint opens as, what went in and what came out.

    blocks: the released names of understanding, generation and action. names: of weights.
    """

    model: VlaMotModel
    given: dict[str, Tensor]
    out: dict[str, Tensor]
    grads: dict
    observation: Observation
    blocks: tuple[str, str, str]
    names: ReleasedNames

    @property
    def batch(self) -> Batch:
        real = torch.zeros_like(self.given["action"], dtype=torch.bool)
        real[..., :REAL_DIMS] = True
        return Batch(
            observation=self.observation,
            future=self.given["images"][:, :, 2],
            future_mask=self.given["img_masks"],
            actions=self.given["action"],
            action_mask=real,
            index=torch.arange(2),
        )

    @property
    def noise(self) -> tuple[Tensor, Tensor]:
        return self.given["noise"][:, None], self.given["time"][:, None]

    def train(self, block: int, what: str) -> Tensor:
        return self.out[f"train.{self.blocks[block]}_{what}"]


def load(folder: Path, blocks: tuple[str, str, str], text: tuple[str, str, int]) -> Golden:
    """text: keys of the inputs that hold token ids and mask, and how many of the last tokens are text."""
    architecture = yaml.safe_load(Path(__file__).with_name(f"{folder.name}.yaml").read_text())
    # The golden loss is a mean over real dimensions only.
    checkpoint = open_checkpoint(folder, architecture=architecture | {"action_loss": "real"})
    assert checkpoint.layout != "native"
    model, names = checkpoint.load(), ReleasedNames(checkpoint.layout)
    given = {
        key: x.float() if x.is_floating_point() else x
        for key, x in load_file(folder / "inputs.safetensors").items()
    }
    ids, mask, length = text
    observation = Observation(
        images=given["images"][:, :, :2],
        view_mask=given["img_masks"],
        state=given["state"],
        token_ids=given[ids][:, -length:],
        token_mask=given[mask][:, -length:].bool(),
    )
    out, grads = load_file(folder / "outputs.safetensors"), json.loads((folder / "grads.json").read_text())
    return Golden(model.eval(), given, out, grads, observation, blocks, names)


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def joint_tokens(golden: Golden) -> Tokens:
    """The whole training sequence."""
    model, given = golden.model, golden.given
    tokens = model.prefix_tokens(golden.observation)
    x = interpolate(given["noise"], given["action"], given["time"])
    close(x, golden.out["train.x_t"], 1e-6)
    steps = TokenLayout.of(ACTION, torch.ones(2, CHUNK, dtype=torch.bool))
    actions = model._action_tokens(x[:, None], given["time"][:, None])
    tokens.append("action", actions, steps, model.action_positions(tokens.last_position, 1))
    return tokens


class ReleasedMaths:
    """Every number of the training pass, its gradients, and sampling."""

    @torch.no_grad()
    def test_latents(self, golden: Golden) -> None:
        latents = golden.model.encode_frames(golden.observation.images)[0, 0]
        close(latents, golden.out["train.past_current_cosmos_latents_sample0_view0"])

    @torch.no_grad()
    def test_embeddings(self, golden: Golden) -> None:
        hidden = joint_tokens(golden).hidden
        images = golden.model.understanding.embed_images(golden.given["images"][:, :, 1])
        present = golden.given["img_masks"]
        close(images[present], golden.out["train.image_embs"].view_as(images)[present])
        for block, name in enumerate(("understanding", "generation", "action")):
            real = golden.train(block, "pad_masks").bool()
            close(hidden[name][real], golden.train(block, "embs")[real])

    @torch.no_grad()
    def test_positions_and_mask_of_real_tokens(self, golden: Golden) -> None:
        tokens = joint_tokens(golden)
        real = torch.cat([golden.train(block, "pad_masks").bool() for block in range(3)], dim=1)
        positions, expected = tokens.where, golden.out["train.position_ids"]
        assert torch.equal(tokens.layout.valid, real)
        assert torch.equal(positions[:, real], expected.expand(positions.shape[0], -1, -1)[:, real])
        assert torch.equal(build_attn_mask(tokens.layout)[real], golden.out["train.att_2d_masks"][real])
        opened = torch.cat([golden.train(block, "att_masks").float() for block in range(3)], dim=1)
        assert torch.equal(tokens.layout.block, opened[0].cumsum(0).long() - int(opened[0, 0]))

    @torch.no_grad()
    def test_outputs_of_all_experts(self, golden: Golden) -> None:
        tokens, experts = joint_tokens(golden), ("understanding", "generation", "action")
        states, _ = golden.model._run(tokens, tokens.layout, outputs=experts)
        for block, name in enumerate(experts):
            real = golden.train(block, "pad_masks").bool()
            close(states[name][real], golden.train(block, "out")[real])

    @torch.no_grad()
    def test_velocity_and_losses(self, golden: Golden) -> None:
        velocity, _ = golden.model._joint(golden.batch, *golden.noise)
        close(velocity[:, 0], golden.out["train.v_t"])
        error = (velocity[:, 0] - golden.out["train.u_t"]).square()[..., :REAL_DIMS]
        close(error, golden.out["train.loss_action"][..., :REAL_DIMS], 1e-4)
        goal = objective(golden.model.losses(golden.batch, *golden.noise), FORESIGHT_WEIGHT)
        expected = golden.grads["losses"]
        ours = torch.stack((goal.total, goal.action, goal.foresight))
        close(ours, torch.tensor([expected[key] for key in ("loss", "loss_action", "loss_gen")]), 1e-5)

    def test_gradients(self, golden: Golden) -> None:
        model = golden.model
        model.zero_grad()
        objective(model.losses(golden.batch, *golden.noise), FORESIGHT_WEIGHT).total.backward()
        weights, compared = dict(model.named_parameters()), 0
        for key, numbers in golden.grads["grads"].items():
            tied = key.endswith("language_model.embed_tokens.weight") and "qwen3" in key
            name = "understanding.embed_tokens.weight" if tied else golden.names.ours(key)
            gradient = None if name is None else weights[name].grad
            if gradient is None:
                assert numbers is None or numbers[0] == 0, key
            else:
                assert abs(float(gradient.norm()) - numbers[0]) <= 1e-5 * numbers[0] + 1e-7, key
                compared += 1
        assert compared == sum(weight.grad is not None for weight in weights.values()) > 100

    @pytest.mark.parametrize("sample", [0, 1])
    @torch.no_grad()
    def test_cached_sampling(self, golden: Golden, sample: int) -> None:
        model, out, rows = golden.model, golden.out, slice(sample, sample + 1)
        prefix, steps = model.prefill(golden.observation[rows]), out["infer.x_t_steps"].shape[0]
        for x, level, expected in zip(
            out["infer.x_t_steps"], out["infer.time_steps"], out["infer.v_t_steps"], strict=True
        ):
            close(model.denoise(prefix, x[rows], level[rows]), expected[rows])
        noise, width = golden.given["sample_noise"][rows], golden.given["action"].shape[-1]
        actions, _ = model.sample(golden.observation[rows], noise, steps, width)
        close(actions, out["infer.actions"][rows])

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("precision", ["weights", "autocast"])
    def test_bfloat16_stays_close_to_float32(self, golden: Golden, precision: str) -> None:
        """Losses, gradients, velocities, foresight and sampled actions; reached: see the module's docstring."""
        model = deepcopy(golden.model)
        expected = everything(golden, model)
        casting = nullcontext() if precision == "weights" else torch.autocast("cpu", torch.bfloat16)
        if precision == "weights":
            model.cast(torch.bfloat16)
        with casting:
            found = everything(golden, model)
        for name, value in found.items():
            assert value.dtype == torch.float32, name
            deviation = (value - expected[name]).square().mean().sqrt() / expected[
                name
            ].square().mean().sqrt()
            assert deviation < (0.04 if name == "gradients" else 0.025), (name, float(deviation))


def everything(golden: Golden, model: VlaMotModel) -> dict[str, Tensor]:
    """One training step's numbers, forward and backward, and one sampled chunk."""
    model.zero_grad()
    goal = objective(model.losses(golden.batch, *golden.noise), FORESIGHT_WEIGHT)
    goal.total.backward()
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        velocity, latents = model._joint(golden.batch, *golden.noise)
        width = golden.given["action"].shape[-1]
        actions, foresight = model.sample(golden.observation, golden.given["sample_noise"], 10, width)
    present = golden.given["img_masks"]
    return {
        "action loss": goal.action.detach(),
        "foresight loss": goal.foresight.detach(),
        "gradients": torch.cat(gradients),
        "velocity": velocity,
        "latents": latents[present],
        "actions": actions,
        "foresight": foresight[present],
    }
