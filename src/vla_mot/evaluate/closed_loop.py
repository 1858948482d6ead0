"""Many seeded episodes in step, in one process, with one batched inference for all robots that are still running.

An episode's result depends on its seed and its controller, not on which episodes ran beside it: environments
share nothing, sampling noise is keyed by the seed, and an episode that ended drops out of the batch. (Floating
point may round differently in batches of another size.)
"""

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from vla_mot.evaluate.controllers import Controller, RawObservation, attribute
from vla_mot.evaluate.results import EpisodeResult
from vla_mot.evaluate.video import EpisodeVideo

OnEpisode = Callable[[EpisodeResult], None]
"""Called when an episode ends, in the order in which they end; how a command draws its progress bar."""


def run_episodes(
    make_env: Callable[[], gym.Env],
    controller: Controller,
    seeds: Sequence[int],
    *,
    parallel: int = 25,
    video_seeds: Collection[int] = (),
    video_folder: Path | None = None,
    on_episode: OnEpisode = lambda result: None,
) -> list[EpisodeResult]:
    """Run one episode per seed and return the results in the order of `seeds`.

    make_env: a fresh environment; episodes end by its own `terminated` or `truncated`, and `info["verdict"]`
        (else `info["is_success"]`) judges them.
    parallel: environments that run in step.
    video_seeds, video_folder: these episodes are written to `<video_folder>/<seed>.mp4`.
    """
    if parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {parallel}.")
    filmed = set(video_seeds) if video_folder is not None else set()
    envs = [make_env() for _ in range(min(parallel, len(seeds)))]
    results: list[EpisodeResult] = []
    try:
        for start in range(0, len(seeds), parallel):
            wave = list(seeds[start : start + parallel])
            running = _begin(envs, controller, wave, filmed)
            results += _run_wave(running, controller, video_folder, on_episode)
    finally:
        for env in envs:
            env.close()
    return results


class _Episode:
    """One running episode: its environment, its latest observation, and its result so far."""

    def __init__(
        self, env: gym.Env, seed: int, observation: RawObservation, video: EpisodeVideo | None
    ) -> None:
        self.env, self.seed, self.observation, self.video = env, seed, observation, video
        self.task = attribute(env, "task")
        self.instruction = ""
        self.steps, self.seconds = 0, 0.0
        self.ended = False
        self._info: dict[str, Any] = {}

    def step(self, action: Any) -> None:
        """Take one control step."""
        self.observation, _, terminated, truncated, self._info = self.env.step(action)
        self.steps += 1
        self.ended = bool(terminated or truncated)

    def result(self) -> EpisodeResult:
        """What came of it, once it has ended."""
        success = bool(self._info.get("is_success", False))
        verdict = str(self._info.get("verdict", "success" if success else "failure"))
        return EpisodeResult(
            self.seed, self.task, self.instruction, verdict, success, self.steps, self.seconds
        )


def _begin(
    envs: Sequence[gym.Env], controller: Controller, seeds: Sequence[int], filmed: set[int]
) -> list[_Episode]:
    episodes = []
    for env, seed in zip(envs, seeds, strict=False):
        observation, _ = env.reset(seed=seed)
        episodes.append(_Episode(env, seed, observation, EpisodeVideo() if seed in filmed else None))
    instructions = controller.begin([episode.env for episode in episodes], seeds)
    for episode, instruction in zip(episodes, instructions, strict=True):
        episode.instruction = instruction
    return episodes


def _run_wave(
    episodes: list[_Episode], controller: Controller, video_folder: Path | None, on_episode: OnEpisode
) -> list[EpisodeResult]:
    running = episodes
    while running:
        started = time.perf_counter()
        actions = controller.act([episode.observation for episode in running])
        for row, (episode, action) in enumerate(zip(running, actions, strict=True)):
            if episode.video is not None:
                episode.video.add(
                    episode.observation["pixels"], controller.foreseen(row), episode.instruction
                )
            episode.step(action)
        share = (time.perf_counter() - started) / len(running)
        for episode in running:
            episode.seconds += share
        running = _drop_finished(running, controller, video_folder, on_episode)
    return [episode.result() for episode in episodes]


def _drop_finished(
    running: list[_Episode], controller: Controller, video_folder: Path | None, on_episode: OnEpisode
) -> list[_Episode]:
    rows = [row for row, episode in enumerate(running) if not episode.ended]
    for episode in running:
        if not episode.ended:
            continue
        result = episode.result()
        on_episode(result)
        if episode.video is not None and video_folder is not None:
            episode.video.add(episode.observation["pixels"], {}, f"{result.instruction}: {result.verdict}")
            episode.video.write(video_folder / f"{result.seed}.mp4", fps=_fps(episode.env))
    if rows and len(rows) < len(running):
        controller.keep(rows)
    return [running[row] for row in rows]


def _fps(env: gym.Env) -> int:
    return round(env.metadata.get("render_fps", 10))
