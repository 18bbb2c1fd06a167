"""What is asked of each source is what is trained on, to a row or so, and is told as it was."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.batch import Layout, stream_updates
from peftkit.data.draft import Encoder
from peftkit.data.order import Shuffled
from peftkit.data.origin import name_sources
from peftkit.data.prepare import Data, prepare_data
from peftkit.errors import InputError
from peftkit.recipe.sections.data import DataSection, SourceSection

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def short(count: int, start: int = 0) -> Rows:
    return [
        {"prompt": f"double {number}", "completion": str(2 * number)}
        for number in range(start, start + count)
    ]


def long(count: int) -> Rows:
    """Three times as long as the short ones, and of lengths of their own."""
    return [
        {"text": f"passage {number} " + "abcdefgh" * (2 + number % 3)} for number in range(count)
    ]


def prepare(tokenizer: Any, folder: Path, **section: Any) -> Data:
    held = write(folder / "held.jsonl", short(5, 9000))
    settled = DataSection.model_validate({"validation": held, "leakage": "off", **section})
    stops = frozenset({tokenizer.eos_token_id})
    return prepare_data(settled, Encoder(tokenizer, stops, 200, "error"), seed=7)


def shares(data: Data, places: int, of: str = "tokens") -> dict[str, float]:
    return {each["source"]: each[f"share_of_{of}"] for each in data.mixture.seen(places)}


def test_replay_is_a_fraction_of_the_tokens_though_its_rows_are_longer(
    tmp_path: Path, tokenizer: Any
) -> None:
    general = {"source": write(tmp_path / "g.jsonl", long(40)), "format": "text", "fraction": 0.05}
    data = prepare(
        tokenizer, tmp_path, train=write(tmp_path / "own.jsonl", short(400)), replay=general
    )
    facts = {
        each["source"]: each["tokens"] / each["rows"] for each in data.facts["train"]["sources"]
    }
    assert facts["g.jsonl"] > 2.5 * facts["own.jsonl"]
    updates = list(islice(updates_of(data), 60))
    whole = sum(update.real_tokens for update in updates)
    (replayed,) = [each for each in data.mixture.seen(60 * 8) if each["replay"]]
    assert whole == sum(each["tokens"] for each in data.mixture.seen(60 * 8))
    longest = max(update.real_tokens for update in updates)
    assert abs(replayed["tokens"] - 0.05 * whole) < longest
    assert shares(data, 60 * 8)["g.jsonl"] == pytest.approx(0.05, abs=0.005)


def updates_of(data: Data, **place: int) -> Any:
    layout = Layout(packing=True, micro_rows=4, pad_id=0)
    order = data.mixture.order
    return stream_updates(data.train.examples, layout, rows=8, seed=7, order=order, **place)


@pytest.mark.parametrize(("count", "epoch"), [(3, "first"), (3, "all"), (300, "all")])
def test_an_epoch_with_replay_is_every_training_row_once(
    count: int, epoch: str, tmp_path: Path, tokenizer: Any
) -> None:
    general = {"source": write(tmp_path / "g.jsonl", long(count)), "fraction": 0.3}
    data = prepare(
        tokenizer,
        tmp_path,
        train=write(tmp_path / "own.jsonl", short(100)),
        replay=general,
        mixture={"epoch": epoch},
    )
    places = int(data.mixture.order.places(1))
    own, replayed = data.mixture.seen(places)
    assert (own["rows"], own["times"]) == (100, 1.0)
    assert (replayed["times"] > 3) == (count == 3)
    assert not own["replay"]
    assert data.mixture.tokens_per_epoch == round(own["tokens"] / 0.7)
    plain = prepare(tokenizer, tmp_path, train=write(tmp_path / "own.jsonl", short(100)))
    assert isinstance(plain.mixture.order, Shuffled)
    mixed = [data.mixture.order.at(place) for place in range(places)]
    alone = [plain.mixture.order.at(place) for place in range(100)]
    assert [row for row in mixed if row < 100] == alone


@pytest.mark.parametrize("by", ["tokens", "rows"])
def test_weights_are_shares_of_what_they_are_said_to_be(
    by: str, tmp_path: Path, tokenizer: Any
) -> None:
    data = prepare(
        tokenizer,
        tmp_path,
        train=[
            {"source": write(tmp_path / "a.jsonl", short(200)), "weight": 3},
            {"source": write(tmp_path / "b.jsonl", long(50)), "weight": 1},
        ],
        mixture={"by": by},
    )
    places = int(data.mixture.order.places(2))
    assert shares(data, places, by)["a.jsonl"] == pytest.approx(0.75, abs=0.01)
    asked = {each["source"]: each for each in data.mixture.facts or ()}
    assert asked["a.jsonl"][f"share_of_{by}"] == pytest.approx(0.75)
    for of in ("tokens", "rows"):
        seen = shares(data, places, of)
        assert seen == pytest.approx({n: e[f"share_of_{of}"] for n, e in asked.items()}, abs=0.01)


@pytest.mark.parametrize(("temperature", "small"), [(1e6, 0.5), (2.0, None)])
def test_a_temperature_evens_sources_out(
    temperature: float, small: float | None, tmp_path: Path, tokenizer: Any
) -> None:
    sources = [write(tmp_path / "a.jsonl", short(160)), write(tmp_path / "b.jsonl", short(10, 500))]
    data = prepare(tokenizer, tmp_path, train=sources, mixture={"temperature": temperature})
    tokens = [each["tokens"] for each in data.facts["train"]["sources"]]
    wanted = small or 1 / (1 + (tokens[0] / tokens[1]) ** 0.5)
    assert shares(data, 800)["b.jsonl"] == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("epoch", ["all", "first"])
def test_an_epoch_lasts_as_long_as_it_is_told(epoch: str, tmp_path: Path, tokenizer: Any) -> None:
    data = prepare(
        tokenizer,
        tmp_path,
        train=[
            {"source": write(tmp_path / "a.jsonl", short(80)), "weight": 1},
            {"source": write(tmp_path / "b.jsonl", short(20, 500)), "weight": 1},
        ],
        mixture={"epoch": epoch},
    )
    times = [each["times"] for each in data.mixture.seen(int(data.mixture.order.places(1)))]
    assert times[0 if epoch == "all" else 1] == 1.0
    assert (times[1] > 3) if epoch == "all" else (times[0] < 0.4)


def test_sources_without_a_word_about_shares_are_shuffled_together(
    tmp_path: Path, tokenizer: Any
) -> None:
    sources = [write(tmp_path / "a.jsonl", short(30)), write(tmp_path / "b.jsonl", short(9, 500))]
    data = prepare(tokenizer, tmp_path, train=sources)
    assert data.mixture.facts is None
    assert data.facts["mixture"] is None
    assert [each["times"] for each in data.mixture.seen(2 * 39)] == [2.0, 2.0]


def test_an_update_of_a_mixture_follows_from_its_number(tmp_path: Path, tokenizer: Any) -> None:
    general = {"source": write(tmp_path / "g.jsonl", long(5)), "format": "text", "fraction": 0.2}
    source = write(tmp_path / "own.jsonl", short(50))
    data = prepare(tokenizer, tmp_path, train=source, replay=general)
    whole = list(islice(updates_of(data), 20))
    again = prepare(tokenizer, tmp_path, train=source, replay=general)
    for number in (0, 3, 19):
        one = next(updates_of(again, start=number))
        for batch, other in zip(one.micro_batches, whole[number].micro_batches, strict=True):
            assert batch.inputs.tolist() == other.inputs.tolist()


def test_rows_of_benchmarks_and_held_out_rows_are_never_replayed(
    tmp_path: Path, tokenizer: Any
) -> None:
    general = [*short(4, 9000), *short(6, 500)]  # of which the first four are held out
    data = prepare(
        tokenizer,
        tmp_path,
        train=write(tmp_path / "own.jsonl", short(20)),
        benchmarks=write(tmp_path / "exam.jsonl", short(3, 500)),
        leakage="remove",
        replay={"source": write(tmp_path / "g.jsonl", general), "fraction": 0.2},
    )
    replayed = [each.where for each in data.train.examples if each.source == "g.jsonl"]
    assert replayed == ["g.jsonl:8", "g.jsonl:9", "g.jsonl:10"]


def test_processes_divide_the_updates_of_a_mixture(tmp_path: Path, tokenizer: Any) -> None:
    general = {"source": write(tmp_path / "g.jsonl", long(5)), "format": "text", "fraction": 0.2}
    source = write(tmp_path / "own.jsonl", short(50))
    data = prepare(tokenizer, tmp_path, train=source, replay=general)

    def rows(**place: int) -> list[list[str]]:
        return [
            sorted(each.where for b in update.micro_batches for row in b.documents for each in row)
            for update in islice(updates_of(data, **place), 12)
        ]

    first, second = rows(part=0, parts=2), rows(part=1, parts=2)
    together = [sorted(one + other) for one, other in zip(first, second, strict=True)]
    assert together == rows()
    assert all(first)
    assert all(second)


def test_what_is_seen_is_told_by_origin(tmp_path: Path, tokenizer: Any) -> None:
    data = prepare(
        tokenizer,
        tmp_path,
        train=[
            {"source": write(tmp_path / "a.jsonl", short(30)), "origin": "human"},
            {"source": write(tmp_path / "b.jsonl", short(10, 500)), "origin": "generated"},
            {"source": write(tmp_path / "c.jsonl", short(20, 600)), "origin": "human"},
        ],
    )
    seen = data.seen(120)
    assert [each["origin"] for each in seen["sources"]] == ["human", "generated", "human"]
    told = {each["origin"]: each for each in seen["origins"]}
    assert (told["human"]["rows"], told["generated"]["rows"]) == (100, 20)
    assert told["human"]["share_of_rows"] == pytest.approx(5 / 6)
    assert [e["origin"] for e in data.facts["train"]["sources"]] == ["human", "generated", "human"]


def test_files_of_one_name_are_told_apart(tmp_path: Path, tokenizer: Any) -> None:
    sources = [
        {"source": write(tmp_path / "x" / "rows.jsonl", short(9)), "weight": 1},
        {"source": write(tmp_path / "y" / "rows.jsonl", short(9, 500)), "weight": 2},
    ]
    data = prepare(tokenizer, tmp_path, train=sources)
    names = [each["source"] for each in data.mixture.seen(30)]
    assert names == ["x/rows.jsonl", "y/rows.jsonl"]
    same = [SourceSection(source=name) for name in ("a/b.csv", "a/b.csv", "c.csv", "hub:o/s@1:t")]
    assert name_sources(same) == ["a/b.csv", "a/b.csv (2)", "c.csv", "hub:o/s@1:t"]


def test_a_source_without_rows_cannot_have_its_share(tmp_path: Path, tokenizer: Any) -> None:
    sources = [
        {"source": write(tmp_path / "a.jsonl", short(9)), "weight": 1},
        {"source": write(tmp_path / "b.jsonl", short(1, 10**9)), "weight": 1},
    ]
    settled = DataSection.model_validate({"train": sources, "leakage": "off"})
    stops = frozenset({tokenizer.eos_token_id})
    with pytest.raises(InputError, match=r"`b\.jsonl` has no row left to train on") as refusal:
        prepare_data(settled, Encoder(tokenizer, stops, 14, "drop"))
    assert "data.too_long=error" in refusal.value.hint  # no other command gets further than this


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": [{"source": "a", "weight": 1}, "b"]}, r"`train\.1` has no `weight`"),
        (
            {"train": [{"source": "a", "weight": 1}], "mixture": {"temperature": 2.0}},
            "both set the shares",
        ),
        (
            {
                "train": "a",
                "replay": [{"source": "g", "fraction": 0.5}, {"source": "h", "fraction": 0.5}],
            },
            "`replay` takes 1 of the tokens",
        ),
        ({"train": "a", "replay": "g"}, "fraction"),
        ({"train": "a", "test": [{"source": "t", "weight": 1}]}, "weight"),
    ],
)
def test_shares_that_cannot_be_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSection.model_validate(section)


def test_replayed_rows_count_as_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    """What must not be trained on is looked for among them as well."""
    text = write(tmp_path / "g.jsonl", long(6))
    general = {"source": text, "format": "text", "fraction": 0.2}
    held = write(tmp_path / "held.jsonl", [{"text": long(2)[1]["text"].upper()}])
    section = {
        "train": write(tmp_path / "own.jsonl", short(50)),
        "replay": general,
        "validation": held,
        "benchmarks": [write(tmp_path / "bench.jsonl", long(1))],
    }
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 200, "error")
    remember = (SourceSection(source=text, format="text"),)

    def prepare_with(policy: str, **more: Any) -> Data:
        settled = DataSection.model_validate({**section, "leakage": policy})
        return prepare_data(settled, encoder, **more)

    data = prepare_with("warn", remember=remember)
    assert data.checks.leakage["sets"] == {
        "validation": {"exact": 0, "near": 0},  # a row that is judged by is not replayed
        "remember": {"exact": 5, "near": 0},
        "benchmarks": {"exact": 1, "near": 0},
    }
    with pytest.raises(InputError, match=r"1 held-out row is also trained on"):
        prepare_with("error")
    left = prepare_with("remove")
    assert left.checks.leakage["left_out_of_training"] == 1
    assert [each["rows"] for each in left.train.facts["sources"]] == [4, 50]
