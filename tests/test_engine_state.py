"""What is on the disk can always be gone on from, and what cannot be gone on from is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nvf_fast.training import loop
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.state import CannotStart, StateFiles
from tests.training_cases import Dots, output_of, tiny

CPU = torch.device("cpu")


def steps_of(directory: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in directory.glob("state-*.pt"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingConfig, Path]:
    config, directory = tiny(steps=4), tmp_path_factory.mktemp("finished")
    loop.train(config, Dots(), directory, progress=False)
    assert steps_of(directory) == [2, 4]
    return config, directory


@pytest.fixture
def trained(finished: tuple[TrainingConfig, Path], tmp_path: Path) -> tuple[TrainingConfig, Path]:
    """A training of four steps, and a folder with it to do anything to."""
    return finished[0], Path(shutil.copytree(finished[1], tmp_path / "trained"))


@pytest.mark.parametrize("damage", [truncate, empty, flip_one_bit])
def test_a_damaged_state_falls_back_and_says_so(
    trained: tuple[TrainingConfig, Path], damage: Callable[[Path], None]
) -> None:
    config, directory = trained
    newest = max(directory.glob("state-*.pt"))
    wanted = torch.load(newest)["model"]
    damage(newest)
    with pytest.warns(UserWarning, match=rf"damaged: {newest.name}; going on from state-000000002-"):
        result = loop.train(config, Dots(), directory, progress=False)
    assert result.step == 4
    entries = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert [entry["damaged_states"] for entry in entries if "damaged_states" in entry] == [[newest.name]]
    assert steps_of(directory) == [2, 4]  # the damaged one has made way
    trainer = loop.Trainer(config, Dots(), directory, CPU)
    assert trainer.load()
    assert all(torch.equal(value, wanted[name]) for name, value in trainer.model.state_dict().items())


def test_nothing_but_damage_is_an_error_that_names_it(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    newest, before = sorted(directory.glob("state-*.pt"), reverse=True)
    truncate(newest)
    flip_one_bit(before)
    with pytest.raises(CannotStart, match=f"every state is damaged: {newest.name}, {before.name}"):
        loop.train(config, Dots(), directory, progress=False)
    assert steps_of(directory) == [2, 4]


def test_the_state_before_stays_and_older_ones_go(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    (tmp_path / ".state-000000001-0.pt.99.part").write_bytes(b"killed")
    for step in (1, 2, 3):
        files.write(step, {"value": torch.tensor(step)})
    assert steps_of(tmp_path) == [2, 3]
    assert len(list(tmp_path.iterdir())) == 2
    found = StateFiles(tmp_path).newest()
    assert found is not None and found.state["value"] == 3
    assert StateFiles(tmp_path / "none").newest() is None


def test_every_difference_is_told(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    options = replace(config.optimisation, parts=4, learning_rate=0.5)
    with pytest.raises(CannotStart, match="holds another training") as refused:
        loop.train(replace(config, optimisation=options), Dots(13), directory, progress=False)
    for told in ("parts was 2, now 4", "learning_rate was 0.0013, now 0.5", "count was 12, now 13"):
        assert told in str(refused.value)


def test_other_pictures_of_the_same_number_are_refused(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    other = Dots()
    other.pictures[3] += 1
    with pytest.raises(CannotStart, match=r"differing: pictures.fingerprint was '\w+', now '\w+'$"):
        loop.train(config, other, directory, progress=False)


def test_another_environment_needs_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(steps=3)
    assert not loop.train(config, Dots(), tmp_path, minutes=0, progress=False).finished
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(CannotStart, match=r"bit for bit.*: torch was '.+', now '1.0'$"):
        loop.train(config, Dots(), tmp_path, progress=False)
    assert loop.train(config, Dots(), tmp_path, inexact=True, progress=False).finished
    monkeypatch.setattr(torch, "__version__", "2.0")  # where nothing is left to do, nothing can differ
    assert loop.train(config, Dots(), tmp_path, progress=False).finished


def test_missing_tensors_and_entries_are_told(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    trainer = loop.Trainer(config, Dots(), directory, CPU)
    whole = trainer._state()
    for state, told in (
        ({**whole, "averaged": {}, "auxiliary": {}}, r"averaged: \d+ missing: .*; auxiliary: 6 missing"),
        ({name: value for name, value in whole.items() if name != "random"}, "a state without random"),
        (whole | {"version": 1}, "version 1, this library reads 2"),
    ):
        trainer.files.write(9, state)
        with pytest.raises(CannotStart, match=told):
            loop.Trainer(config, Dots(), directory, CPU).load()


def test_the_later_of_two_states_of_one_step_is_newest(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    for value in range(12):  # digests come in any order, so one of the twelve would be taken by chance
        files.write(9, {"value": value})
        found = StateFiles(tmp_path).newest()
        assert found is not None and found.state["value"] == value


def test_global_random_numbers_are_restored(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    trainer = loop.Trainer(config, Dots(), directory, CPU)
    torch.manual_seed(7)
    torch.rand(5)
    trainer.step = 5
    trainer.save()
    wanted = torch.rand(3)
    assert loop.Trainer(config, Dots(), directory, CPU).load()
    assert torch.equal(torch.rand(3), wanted)


# A process that does nothing but save is killed before each of the operations on files that make a save, and
# at random moments. After every kill the state and the checkpoint are read, and the next one goes on.
KILLED_WHILE_SAVING = """
config, directory = tiny(steps=10**6), Path(sys.argv[1])
config = replace(config, model=replace(config.model, stacks=1, depth=1))
trainer = loop.Trainer(config, Dots(), directory, torch.device("cpu"))

def save():
    trainer.step += 1
    with torch.no_grad():
        for parameter in [*trainer.parameters, *trainer.averaged.parameters()]:
            parameter += 1e-4
    trainer.save()

def killed_child(operation=None, seconds=None):
    # Returns whether the child was killed; it ends by itself when a save has fewer operations.
    child = os.fork()
    if child == 0:
        seen = 0
        def strike(event, arguments=()):
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "fsync"):
                seen += 1
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(strike)
        fsync = os.fsync
        os.fsync = lambda handle: (strike("fsync"), fsync(handle))
        for _ in range(1) if operation else iter(int, 1):
            save()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

def check():
    before = trainer.step
    assert trainer.load() and trainer.step >= before
    steps = load_checkpoint(directory / "checkpoint")[1]["training"]["steps"]
    assert steps in (trainer.step, trainer.step + 1), (steps, trainer.step)

save()
began = time.monotonic()
save()
lasts = time.monotonic() - began
operations = 0
while killed_child(operation=operations + 1):
    operations += 1
    check()
check()
number, kills = random.Random(0), 0
for _ in range(25):
    assert killed_child(seconds=number.uniform(0, 3 * lasts))
    check()
    kills += 1
save()
unfinished = [path.name for path in directory.rglob("*.part")]
print(json.dumps([operations, kills, unfinished, sorted(os.listdir(directory / "checkpoint"))]))
"""


def test_killed_while_saving_at_any_moment(tmp_path: Path) -> None:
    operations, kills, unfinished, checkpoint = json.loads(output_of(KILLED_WHILE_SAVING, tmp_path))
    assert operations >= 15  # 19 counted
    assert kills == 25
    assert unfinished == []
    assert checkpoint == ["config.json", "weights.safetensors"]
