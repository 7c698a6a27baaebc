"""Random numbers of a fit's own, on the CPU and on a device."""

from __future__ import annotations

import pytest
import torch

from compoff.fitting.randomness import own_random_numbers, random_states, set_random_states


def test_a_seed_decides_and_the_caller_goes_on() -> None:
    before, drawn = torch.get_rng_state(), []
    for _ in range(2):
        with own_random_numbers(5, torch.device("cpu")):
            drawn.append(torch.rand(3).tolist())
        assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1]
    with pytest.raises(KeyError), own_random_numbers(5, None):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_has_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    device, state = torch.device("cuda", 1), {1: torch.tensor([7], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state[device.index].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda found, device: state.update({device.index: found}))
    states = random_states(device)
    expected = torch.rand(2)
    state[1] = torch.tensor([9], dtype=torch.uint8)
    set_random_states(states, device)
    assert state[1].tolist() == [7]
    assert torch.equal(torch.rand(2), expected)
    # What was saved without a device's state leaves that one alone, and so does a fit that goes on elsewhere.
    state[1] = torch.tensor([9], dtype=torch.uint8)
    set_random_states(states[:1], device)
    set_random_states(states, torch.device("cpu"))
    assert state[1].tolist() == [9]
    assert len(random_states(None)) == len(random_states(torch.device("cpu"))) == 1


def test_a_kind_of_device_of_which_there_is_one_is_seeded_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.Generator().manual_seed(1)
    monkeypatch.setattr(torch.mps, "manual_seed", numbers.manual_seed)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: numbers.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: numbers.set_state(state))
    device, before, drawn = torch.device("mps", 0), numbers.get_state(), []
    for _ in range(2):
        with own_random_numbers(5, device):
            states = random_states(device)
            drawn.append(torch.rand(3, generator=numbers).tolist())
            set_random_states(states, device)
            drawn.append(torch.rand(3, generator=numbers).tolist())
        assert torch.equal(numbers.get_state(), before)
    assert drawn == drawn[:1] * 4
