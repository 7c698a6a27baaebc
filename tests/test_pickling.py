"""Heads, tails and remotes stay in their process: a pickle is refused in words, a copy is none."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
import torch

import compoff
from compoff.errors import CompoffError, PickleError
from tests.golden_head import golden_head, golden_inputs, golden_tail


def refused(thing: Any, words: str) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(PickleError, match=f"^a {type(thing).__name__} belongs to its process .*; {words}"):
            pickle.dumps({"inside": [thing]}, protocol)
    assert issubclass(PickleError, (CompoffError, TypeError))


def test_a_head_and_a_tail() -> None:
    head, tail, x = golden_head(), golden_tail(), golden_inputs(2)
    refused(head, r"save it, and call compoff\.Head\.load")
    refused(tail, r"save it, and call compoff\.Tail\.load")
    for copied in (copy.copy, copy.deepcopy):
        twin = copied(head)
        assert type(twin) is compoff.Head
        assert (twin.runner is head.runner) == (copied is copy.copy)
        assert bytes(twin(x)) == bytes(head(x))
        other = copied(tail)
        torch.testing.assert_close(other(head(x)), tail(head(x)), rtol=0, atol=0)


def test_a_remote_of_each_kind() -> None:
    head, x = golden_head(), golden_inputs(2)

    async def with_asyncio(address: str) -> None:
        async with await compoff.connect_async(head, address) as remote:
            refused(remote, r"call compoff\.connect_async there")

    with compoff.serve(golden_tail()) as server:
        with head.connect(server.address) as remote:
            refused(remote, r"call compoff\.connect there")
            with pytest.raises(PickleError, match=r"this Remote cannot be copied with all that it holds"):
                copy.deepcopy(remote)
            torch.testing.assert_close(copy.copy(remote)(x), remote(x), rtol=0, atol=0)
        asyncio.run(with_asyncio(server.address))
