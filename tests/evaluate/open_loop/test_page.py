import pytest
from PIL import Image

from tests.evaluate.test_report import Page
from vla_mot.evaluate.open_loop.page import PAGE_FILE, write_page


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    assert write_page(result, folder, "Open loop: <a>") == folder / PAGE_FILE
    return folder


def test_the_page_says_it_all_and_refers_to_nothing(folder):
    page = Page((folder / PAGE_FILE).read_text())
    for part in (
        "Open loop: <a>",
        "15 moments, 6 episodes, 3 datasets",
        "Actions of lifter",
        "10 chunks of 4 episodes, delta actions",
        "joints (rad)",
        "turn (rad)",
        "Per dataset, in deviations",
        "Foresight of eye",
        "head: copy of the last frame",
        "Pictures 3 frames (0.6 s) ahead",
        "Chunks over episodes of <two>",
        "A chunk of 4 steps is predicted every 2 frames",
        "Episode 0: pick block 0",
        "film: no actions are recorded",
    ):
        assert part in page.said, part
    assert "Actions of eye" not in page.said
    assert all(reference.startswith("data:image/png") for reference in page.references)
    # a horizon, two episodes, and four pictures of 2 + 2 + 1 cameras
    assert len(page.references) == 1 + 2 + 4 * 5


def test_the_plots_lie_beside_it(folder):
    assert sorted(path.name for path in (folder / "plots").iterdir()) == [
        "<two>-000000.png", "a__one-000000.png", "lifter-horizon.png",
    ]  # fmt: skip
    for path in (folder / "plots").iterdir():
        with Image.open(path) as picture:
            colours = picture.convert("RGB").getcolors(2**24)
            assert (31, 111, 235) in {colour for _, colour in colours}, "what is predicted is drawn"
