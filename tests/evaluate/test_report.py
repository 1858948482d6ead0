import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.found import evaluation
from vla_mot.evaluate.machine import describe_machine
from vla_mot.evaluate.picture import draw_picture
from vla_mot.evaluate.report import ReportContent, render_report, write_report
from vla_mot.evaluate.results import Evaluation
from vla_mot.evaluate.video import write_video

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects what a page refers to and what it says, and notices tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.references, self.words, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())


def records() -> list[dict]:
    train = [
        {"step": s, "kind": "train", "action_loss": 2.0 / s, "foresight_loss": 1.0 / s, "seconds": 3.0 * s}
        for s in range(1, 50)
    ]
    train[10]["action_loss"] = "nan"
    seen = [
        {"step": s, "kind": "validation", "action_loss": 3.0 / s, "foresight_loss": 0.123456}
        for s in (20, 40)
    ]
    return sorted(train + seen, key=lambda record: record["step"])


@pytest.fixture
def content(tmp_path) -> ReportContent:
    write_video(tmp_path / "1.mp4", [np.full((32, 32, 3), level, np.uint8) for level in (0, 90)], fps=10)
    return ReportContent(
        title="A run & its <report>",
        lede="What it is.",
        records=records(),
        evaluation=evaluation(),
        videos={"seed 1: success": tmp_path / "1.mp4"},
        config={"train": "lr: 0.002\nsteps: 9000"},
        provenance={"seed": "17"} | describe_machine(),
    )


def test_the_page_refers_to_nothing_outside(content):
    html = render_report(content)
    page = Page(html)
    assert not re.findall(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[^\"]*", "", html))
    assert page.references and all(r.startswith(("data:", "#")) for r in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_the_page_says_the_figures_it_was_given(content):
    said = Page(render_report(content)).said.replace("\u00a0", " ")
    for figure in (
        "A run & its <report>", "Trained <policy>", "70 %", "40 … 89 %", "20 %",  # success
        "+50 pts", "−50 pts", "1,234 samples of 9 episodes", "0.250", "1.125", "4.50", "8.8 dB",  # foresight
        "past, t − 6", "true future, t + 6", "time out", "0.123", "2 min 27 s", "49 steps",  # and the rest
        "17", "vla-mot evaluate policy=x", "lr: 0.002", "Python 3.", "seed 1: success",
    ):  # fmt: skip
        assert figure in said, figure


def test_pictures_and_films_are_whole(content):
    references = Page(render_report(content)).references
    kinds = [reference.partition(";")[0] for reference in references if reference.startswith("data:")]
    assert kinds.count("data:image/png") == 12 and kinds.count("data:video/mp4") == 1
    example = evaluation().foresight.examples[0]
    pngs = [r for r in references if r.startswith("data:image/png")]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(r.partition(",")[2])))) for r in pngs[:6]]
    order = (
        example.past,
        example.present,
        example.future,
        example.foreseen,
        example.no_history,
        example.present,
    )
    assert all(np.array_equal(a, b) for a, b in zip(shown, order, strict=True))


def test_what_is_not_there_is_left_out():
    page = Page(render_report(ReportContent("Only a title")))
    assert "section" not in page.tags and "Only a title" in page.said
    unseen = Page(render_report(ReportContent("x", evaluation=Evaluation(evaluation().arms))))
    assert "Closed loop" in unseen.said and "foresees" not in unseen.said


def test_a_log_that_just_began_is_drawn():
    one = [{"step": 1, "kind": "train", "action_loss": 1.5, "foresight_loss": 0.0}]
    assert "Learning curves" in Page(render_report(ReportContent("x", records=one))).said


def test_the_page_is_the_same_every_time(content, tmp_path):
    first = write_report(content, tmp_path / "deep" / "index.html")
    assert first.read_text(encoding="utf-8") == render_report(content)


def test_the_picture_is_small_and_shows_the_first_example(tmp_path):
    path = draw_picture(evaluation(), tmp_path / "docs" / "demo.png")
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.width >= 1200 and picture.width / picture.height > 2
    with pytest.raises(ValueError, match="no foresight pictures of episode 8; there are: 3"):
        draw_picture(evaluation(), tmp_path / "no.png", episode=8)
    with pytest.raises(ValueError, match="there are: none"):
        draw_picture(Evaluation(evaluation().arms), tmp_path / "no.png")


def test_the_machine_is_described():
    facts = describe_machine()
    assert {"processor", "cores", "torch", "system"} <= facts.keys()
    assert all(isinstance(value, str) and value for value in facts.values())
