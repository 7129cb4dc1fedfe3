"""Pictures of schedules."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from collectives import ALGORITHMS, find
from collectives.draw import MOST_RANKS, draw, main
from collectives.schedule import Parts
from collectives.verify import verify

SVG = "{http://www.w3.org/2000/svg}"


def arrows(picture: str) -> list[ElementTree.Element]:
    """The messages in a picture, which must be well-formed."""
    lines = ElementTree.fromstring(picture).iter(f"{SVG}line")
    return [line for line in lines if line.get("class") == "message"]


@pytest.mark.parametrize("name", [*ALGORITHMS, "tree:3", "butterfly:2,2"])
@pytest.mark.parametrize("world_size", [4, 5, 8])
def test_every_message_has_one_arrow_that_names_its_ends_and_parts(
    name: str, world_size: int
) -> None:
    sent: list[str] = []

    def observe(source: int, dest: int, parts: Parts, counts: list[int]) -> None:
        first, last = parts[0], parts[1] - 1
        which = f"part {first}" if first == last else f"parts {first}-{last}"
        sent.append(f"rank {source} to rank {dest}: {which}")

    verify(find(name), world_size, observe)
    titles = [arrow.findtext(f"{SVG}title", "") for arrow in arrows(draw(find(name), world_size))]
    assert sorted(title.rpartition(",")[0] for title in titles) == sorted(sent)


def test_added_and_copied_parts_look_different_without_colours_too() -> None:
    looks = {"add": set(), "copy": set()}
    for arrow in arrows(draw(ALGORITHMS["ring"], 4)):
        kind = arrow.findtext(f"{SVG}title", "").rpartition(", ")[2]
        looks[kind].add((arrow.get("stroke"), arrow.get("stroke-dasharray")))
    ((added, line),) = looks["add"]
    ((copied, dashes),) = looks["copy"]
    assert added != copied
    assert line is None
    assert dashes is not None


@pytest.mark.parametrize("name", [*ALGORITHMS, "tree:3"])
def test_labels_do_not_overlap_and_lie_in_the_picture(name: str) -> None:
    root = ElementTree.fromstring(draw(find(name), 8))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    boxes = set()
    for text in root.iter(f"{SVG}text"):
        if text.get("stroke") == "white":
            continue  # what makes a label readable above a line
        x, y, letters = float(text.get("x", 0)), float(text.get("y", 0)), len(text.text or "")
        wide = letters * (12 if text.get("font-size") else 7)
        left = x - wide / 2 if text.get("text-anchor") == "middle" else x
        assert left >= 0
        assert left + wide <= width
        assert 13 <= y <= height
        for a, b, c, d in boxes:
            assert left + wide <= a or c <= left or y <= b or d <= y - 13, (name, text.text)
        boxes.add((left, y - 13, left + wide, y))


def test_the_title_tells_what_is_drawn() -> None:
    picture = draw(find("butterfly:4,2"), 9)
    assert "butterfly:4,2, 9 ranks, 8 parts" in picture
    assert "6 rounds; the busiest rank sends 9 messages, 2.75 buffers" in picture


def test_the_same_schedule_gives_the_same_bytes() -> None:
    assert draw(find("tree:3"), 6) == draw(find("tree:3"), 6)


@pytest.mark.parametrize("world_size", [2, MOST_RANKS])
def test_the_smallest_and_the_largest_world_are_drawn(world_size: int) -> None:
    assert len(arrows(draw(ALGORITHMS["halving-doubling"], world_size)))


def test_the_command_writes_the_file_and_tells_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["butterfly:4,2", "--world-size", "8"]) == 0
    assert capsys.readouterr().out == "wrote runs/butterfly-4-2-8.svg\n"
    assert main(["ring", "--output", "ring.svg"]) == 0
    assert len(arrows(Path("ring.svg").read_text())) == 24


WRONG = {
    "rang": "argument NAME: algorithm must be one of alltoall, ",
    "ring:3": "ring takes no arguments",
    "ring --world-size 0": "argument --world-size: must be an integer of at least 1, got '0'",
    "ring --world-size 1": "world size must be from 2 to 32 to be drawn, got 1",
    "ring --world-size 33": "world size must be from 2 to 32 to be drawn, got 33",
    "butterfly:4,2 --world-size 4": "butterfly:4,2 needs at least 8 ranks, got 4",
    "ring --output ring.png": "output must be a file whose name ends in .svg, got ring.png",
    "ring --output no/ring.svg": "must be a file that can be written, got no/ring.svg: No such",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_what_is_wrong_is_said_in_one_line(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("python -m collectives.draw: error: ")
    assert said.count("\n") == 1
    assert WRONG[arguments] in said
