"""Every public function with an argument of another kind: an error of ours that names it, before anything is done."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import compoff
from compoff.checks import check_number, check_path, check_whole
from compoff.errors import (
    ArtifactError,
    BackendError,
    FeatureError,
    FitError,
    LocalProtocolError,
    PayloadError,
    SplitError,
)
from tests.golden_head import golden_head, golden_inputs, golden_tail

if TYPE_CHECKING:
    from collections.abc import Callable

c: Any = compoff  # what is called wrongly here is none of the type checker's business
x = torch.randn(4, 3, 8, 8)
HEAD, TAIL = golden_head(), golden_tail()
NAN = float("nan")


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))


def wrap(split: Any = "1", **options: Any) -> Any:
    return c.wrap(net(), split, **{"example_input": x, **options})


def fit(**options: Any) -> Any:
    return c.fit(wrap(), **{"batches": [x], "steps": 1, **options})


def calibrate(**options: Any) -> Any:
    return c.calibrate(wrap(), **{"batches": [x], **options})


def connect(**options: Any) -> Any:
    return c.connect(**{"heads": HEAD, "address": "127.0.0.1:9", **options})


def connect_async(**options: Any) -> Any:
    return asyncio.run(c.connect_async(**{"heads": HEAD, "address": "127.0.0.1:9", **options}))


def serve(**options: Any) -> Any:
    return c.serve(**{"tails": TAIL, **options})


Case = tuple["Callable[..., Any]", dict[str, Any], type[Exception], str]

CASES: list[Case] = [
    (lambda: c.wrap(None, "1"), {}, SplitError, "model is a NoneType; expected a torch.nn.Module"),
    (wrap, {"split": None}, SplitError, "split_points is None; expected module paths"),
    (wrap, {"split": 3}, SplitError, "split_points is 3"),
    (wrap, {"example_input": "x"}, SplitError, "example_input is 'x', which holds no tensor"),
    (wrap, {"channels": "8"}, FeatureError, "channels is '8'; expected a whole number"),
    (wrap, {"channels": True, "codec": "deepcod"}, FeatureError, "channels is True"),
    (wrap, {"channels": "8", "example_input": None}, FeatureError, "channels is '8'"),
    (wrap, {"channels": -1, "example_input": None}, FeatureError, "channels is -1; expected at least 1"),
    (wrap, {"stride": 0, "example_input": None}, FeatureError, "stride is 0; expected a whole number of at least 1"),
    (wrap, {"num_centers": 8, "example_input": None}, FeatureError, "num_centers is 8; the transform codec takes an o"),
    (wrap, {"num_centers": 1, "codec": "deepcod", "example_input": None}, FeatureError, "num_centers is 1; expected 2"),
    (
        wrap,
        {"encoder": lambda one, two: None, "codec": "transform", "example_input": None},
        FeatureError,
        "an encoder of your own goes with codec",
    ),
    (wrap, {"num_centers": 255.0}, FeatureError, "num_centers is 255.0"),
    (wrap, {"stride": 2.5}, FeatureError, "stride is 2.5"),
    (wrap, {"codec": "jpeg"}, FeatureError, "there is no codec 'jpeg'; expected 'deepcod' or 'transform'"),
    (wrap, {"strict": "no"}, FeatureError, "strict is 'no'; expected True or False"),
    (wrap, {"encoder": torch.nn.Conv2d(3, 8, 3)}, FeatureError, "encoder is Conv2d(3, 8, kernel"),
    (wrap, {"decoder": lambda shape: torch.nn.Identity()}, FeatureError, "expected a function from (input"),
    (wrap, {"encoder": "mine"}, FeatureError, "encoder is 'mine'; expected a function"),
    (wrap, {"split": b"1"}, SplitError, "split_points is b'1'; expected text"),
    (wrap, {"split": [3]}, SplitError, "split point 3 is a int; expected module paths"),
    (wrap, {"skips": "drop"}, SplitError, "skips is 'drop'; expected 'encode', 'send', 'forbid'"),
    (lambda: c.Wrapped(net(), "1"), {}, SplitError, "split_points is the text '1'; expected a list"),
    (lambda: c.Wrapped(net(), ["1"], None, "drop"), {}, SplitError, "skips is 'drop'"),
    (lambda: c.Wrapped(net(), ["1"], {"channels": 8}), {}, SplitError, "options is a dict; expected a CodecOptions"),
    (lambda: c.load(3, net()), {}, ArtifactError, "path is 3; expected a path"),
    (lambda: wrap().save(3), {}, ArtifactError, "path is 3"),
    (lambda: c.list_split_points(None, x), {}, SplitError, "model is a NoneType"),
    (lambda: c.list_split_points(net(), "x"), {}, SplitError, "holds no tensor"),
    (fit, {"lr": "x"}, FitError, "lr is 'x'; expected a learning rate above 0"),
    (fit, {"rate": "x"}, FitError, "rate is 'x'; expected a weight"),
    (fit, {"steps": None, "epochs": 1.5}, FitError, "epochs is 1.5; expected a whole number of at least 1"),
    (fit, {"steps": True}, FitError, "steps is True"),
    (fit, {"recipe": 3}, FitError, "'3' is not a recipe"),
    (fit, {"target_bytes": "400"}, FitError, "target_bytes is '400'; expected a number of bytes above 0"),
    (fit, {"max_drop": "0.1"}, FitError, "max_drop is '0.1'; expected a share"),
    (fit, {"device": "gpu"}, BackendError, "device is 'gpu', which cannot be used here"),
    (fit, {"seed": None}, FitError, "seed is None; expected a whole number"),
    (fit, {"resume": 3}, FitError, "resume is 3; expected a path"),
    (fit, {"progress": "no"}, FitError, "progress is 'no'; expected True or False, or None"),
    (calibrate, {"progress": 0}, FitError, "progress is 0; expected True or False"),
    (lambda: wrap().at("1", bypass="no").__enter__(), {}, SplitError, "bypass is 'no'; expected True or False"),
    (lambda: wrap().distillation_loss(x, distill="no"), {}, FitError, "distill is 'no'; expected True or False"),
    (fit, {"batches": None}, FitError, "batches is a NoneType; expected a loader"),
    (fit, {"batches": x}, FitError, "batches is a tensor, which is one batch; give several"),
    (fit, {"batches": nn.Sequential()}, FitError, "batches is a model, Sequential; expected a loader"),
    (fit, {"validation": 3}, FitError, "validation is a int; expected a loader"),
    (calibrate, {"target_bytes": NAN}, FitError, "target_bytes is nan"),
    (calibrate, {"seed": "x"}, FitError, "seed is 'x'"),
    (calibrate, {"batches": {"x": x}}, FitError, "batches is a dict"),
    (lambda: c.finish(wrap(), 3), {}, FitError, "batches is a int"),
    (lambda: wrap().distillation_loss(x, keywords=x), {}, FitError, "keywords is a Tensor; expected a dict"),
    (lambda: wrap().distillation_loss(x, keywords="x"), {}, FitError, "keywords is a str; expected a dict"),
    (lambda: wrap().distillation_loss(x.numpy()), {}, FitError, "the batch is ndarray; give tensors"),
    (lambda: wrap().distillation_loss(), {}, FitError, "the batch is nothing; give tensors"),
    (fit, {"batches": [x.to("meta")]}, FitError, "a batch holds a tensor on the device 'meta'"),
    (lambda: wrap().distillation_loss(x, rate="x"), {}, FitError, "rate is 'x'"),
    (lambda: wrap().distillation_loss(x, rate=-1.0), {}, FitError, "rate is -1.0; expected a weight of 0 or more"),
    (lambda: wrap().distillation_loss(x, rate=NAN), {}, FitError, "rate is nan"),
    (lambda: wrap().distillation_loss(x, recipe="deepcod"), {}, FitError, 'the recipe is for codec "deepcod", but'),
    (lambda: c.DistillationLoss(wrap(), rate=-1), {}, FitError, "rate is -1"),
    (lambda: c.DistillationLoss(wrap(), recipe="deepcod"), {}, FitError, 'the recipe is for codec "deepcod", but'),
    (fit, {"recipe": "deepcod"}, FitError, 'the recipe is for codec "deepcod", but the model was wrapped with "tr'),
    (lambda: c.DistillationLoss(None), {}, SplitError, "NoneType is no wrapped model"),
    (lambda: c.Recipe(lr="x"), {}, FitError, "the recipe's lr is 'x'"),
    (lambda: c.Recipe(patience=1.5), {}, FitError, "the recipe's patience is 1.5"),
    (lambda: c.Recipe(betas=0.9), {}, FitError, "the recipe's betas are 0.9; expected two numbers"),
    (lambda: c.Recipe(codec="x"), {}, FitError, "the recipe's codec is 'x'"),
    (lambda: c.export(wrap(), "1", max_batch=3.5), {}, ArtifactError, "max_batch is 3.5"),
    (lambda: c.export(wrap(), "1", pixels={"mean": 0.5}), {}, FeatureError, "pixels is {'mean': 0.5}; "),
    (lambda: c.export(wrap(), "1", tail_factory=3), {}, ArtifactError, "tail_factory is 3"),
    (lambda: c.export(wrap(), "1", tail_factory="a.b.c"), {}, ArtifactError, "tail_factory is 'a.b.c'; expected the t"),
    (lambda: c.export(wrap(), "1", tail_factory="a.b:c()"), {}, ArtifactError, "tail_factory is 'a.b:c()'; expected"),
    (lambda: c.export(wrap(), "1", tail_factory=""), {}, ArtifactError, "tail_factory is ''; expected the text"),
    (lambda: wrap().parameter_groups(lr="a"), {}, FitError, "lr is 'a'; expected a learning rate of 0 or more"),
    (lambda: wrap().parameter_groups(lr=-1), {}, FitError, "lr is -1"),
    (lambda: wrap(codec="deepcod").parameter_groups(lr=NAN), {}, FitError, "lr is nan"),
    (c.Head.load, {"path": 3}, ArtifactError, "path is 3; expected a path"),
    (c.Tail.load, {"path": None}, ArtifactError, "path is None"),
    (c.Tail.load, {"path": "x", "pool": 3}, BackendError, "pool is a int; expected a compoff.WeightPool"),
    (HEAD.save, {"path": 3}, ArtifactError, "path is 3"),
    (TAIL.save, {"path": "x", "weights": 3}, ArtifactError, "weights is 3"),
    (HEAD.compile, {"runtime": "onnx", "threads": "x"}, BackendError, "threads is 'x'; expected a whole number"),
    (HEAD.compile, {"runtime": "onnx", "least_agreement": "x"}, BackendError, "least_agreement is 'x'"),
    (HEAD.compile, {"runtime": "onnx", "least_agreement": math.nan}, BackendError, "least_agreement is nan"),
    (HEAD.compile, {"runtime": "onnx", "least_agreement": 1.5}, BackendError, "least_agreement is 1.5"),
    (HEAD.compile, {"runtime": "onnx", "batches": 3}, FeatureError, "batches is a int"),
    (HEAD.c_header, {"quality": 0.5}, FeatureError, "quality is 0.5"),
    (lambda: HEAD(golden_inputs(1), coding=3), {}, FeatureError, "there is no coding 3"),
    (lambda: HEAD.check(golden_inputs(1), quality="x"), {}, FeatureError, "quality is 'x'"),
    (TAIL.compile, {"backend": "eager", "like": 3}, BackendError, "like is a int"),
    (TAIL.compile, {"backend": "eager", "device": 3.5}, BackendError, "cannot run on device '3.5'"),
    (lambda: TAIL("x"), {}, PayloadError, "a str was given"),
    (lambda: TAIL.run(TAIL.decode(HEAD(golden_inputs(1)))), {}, PayloadError, "expected a list of them"),
    (lambda: TAIL.run([HEAD(golden_inputs(1))]), {}, PayloadError, "a Payload was given; expected what Tail.decode"),
    (TAIL.tensors, {"decoded": b"x"}, PayloadError, "a bytes was given; expected what Tail.decode"),
    (lambda: c.Record("a", [1]), {}, ArtifactError, "expected a class's name and a dict"),
    (lambda: c.Record(3, {"a": 1}), {}, ArtifactError, "expected a class's name and a dict"),
    (lambda: HEAD.payload_format.decode("x"), {}, PayloadError, "a str was given"),
    (lambda: HEAD.payload_format.encode(3), {}, FeatureError, "a int was given; expected a list of arrays"),
    (HEAD.payload_format.max_bytes, {"batch": "x"}, FeatureError, "batch is 'x'"),
    (c.Geometry, {"shape": "x"}, FeatureError, "the shape is 'x'"),
    (c.Geometry, {"shape": (3, 8, 8), "stride": "x"}, FeatureError, "stride is 'x'"),
    (c.Bottleneck, {"geometry": (3, 8, 8), "channels": 2}, FeatureError, "geometry is (3, 8, 8); expected a compoff.G"),
    (c.Bottleneck, {"geometry": c.Geometry((3, 8, 8)), "channels": 1.5}, FeatureError, "channels is 1.5"),
    (c.WeightPool().share, {"tensor": 3}, BackendError, "a int was given; expected a tensor"),
    (c.TLS, {"ca": 3}, LocalProtocolError, "ca is 3; expected a path"),
    (serve, {"tails": None}, LocalProtocolError, "a NoneType was given as a tail"),
    (serve, {"tails": HEAD}, LocalProtocolError, "a Head was given as a tail"),
    (serve, {"address": 3}, LocalProtocolError, "3 is not an address"),
    (serve, {"max_batch": 1.5}, LocalProtocolError, "max_batch is 1.5; expected a whole number"),
    (serve, {"window": True}, LocalProtocolError, "window is True"),
    (serve, {"workers": None}, LocalProtocolError, "workers is None"),
    (serve, {"max_wait": "1"}, LocalProtocolError, "max_wait='1' was given"),
    (
        serve,
        {"idle_timeout": None},
        LocalProtocolError,
        "idle_timeout=None was given; expected a finite number",
    ),
    (c.TopK, {"k": 1.5}, LocalProtocolError, "TopK(k=1.5, dim=1) was given; expected a whole k from 1 to 65535"),
    (c.TopK, {"k": "5"}, LocalProtocolError, "TopK(k='5', dim=1) was given"),
    (c.ArgMax, {"dim": "x"}, LocalProtocolError, "ArgMax(dim='x') was given; expected a whole dim from -31 to 31"),
    (c.Recipe, {"average": "no"}, FitError, "the recipe's average is 'no'; expected True or False"),
    (serve, {"insecure": "no"}, LocalProtocolError, "insecure is 'no'; expected True or False"),
    (serve, {"token": 3}, LocalProtocolError, "the token is a int; expected text"),
    (serve, {"token": [3]}, LocalProtocolError, "the token is a int"),
    (serve, {"tls": "x"}, LocalProtocolError, "tls is a str; expected compoff.TLS"),
]
for one in (connect, connect_async):
    CASES += [
        (one, {"heads": None}, SplitError, "a NoneType was given as a head; expected what compoff.Head.load returns"),
        (one, {"address": None}, LocalProtocolError, "None is not an address"),
        (
            one,
            {"timeout": "1"},
            LocalProtocolError,
            "a timeout of '1' seconds was given; expected a finite number",
        ),
        (one, {"timeout": True}, LocalProtocolError, "a timeout of True seconds"),
        (one, {"timeout": 10**400}, LocalProtocolError, "a timeout of 10000000"),
        (one, {"timeout": math.nan}, LocalProtocolError, "a timeout of nan seconds"),
        (one, {"heartbeat": "1"}, LocalProtocolError, "a heartbeat of '1' seconds"),
        (
            one,
            {"heartbeat": 0},
            LocalProtocolError,
            "a heartbeat of 0 seconds was given; expected a finite number",
        ),
        (one, {"insecure": "false"}, LocalProtocolError, "insecure is 'false'; expected True or False"),
        (one, {"token": b"x"}, LocalProtocolError, "the token is a bytes; expected text"),
        (one, {"tls": True}, LocalProtocolError, "tls is a bool"),
        (one, {"reply": "top5"}, LocalProtocolError, "reply='top5' was given; expected 'full', 'fp32'"),
        (one, {"on_failure": "local", "local": 3}, LocalProtocolError, "local is a int; expected something to call"),
    ]


@pytest.mark.parametrize(("function", "arguments", "error", "words"), CASES, ids=[case[3][:40] for case in CASES])
def test_an_argument_of_another_kind_is_named(
    function: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        function(**arguments)
    assert words in str(caught.value)


def test_a_call_of_a_remote_too() -> None:
    with c.serve(TAIL) as server, c.connect(HEAD, server.address) as remote:
        for wrong, error in (
            ({"timeout": "1"}, LocalProtocolError),
            ({"quality": "1"}, FeatureError),
            ({"max_bytes": 1.5}, FeatureError),
            ({"coding": 3}, FeatureError),
            ({"split": 3}, SplitError),
        ):
            with pytest.raises(error):
                remote(golden_inputs(1), **wrong)
        with pytest.raises(LocalProtocolError, match="timeout is 'x'"):
            server.wait("x")
        with pytest.raises(LocalProtocolError, match="a NoneType was given as a tail"):
            server.swap(None)


def test_inputs_by_name_in_one_dict_are_told_to_be_spread() -> None:
    model = wrap(codec="deepcod", channels=1)
    model.eval()
    head, _ = c.export(model, "1")
    named = {"input": x}
    with pytest.raises(FeatureError, match=r"given in one dict: call it with two stars, head\(\*\*inputs\)"):
        head(named)
    assert head(**named) == head(x)


def test_numpy_numbers_are_numbers() -> None:
    import numpy as np

    check_whole("quality", np.int64(3), least=3)
    check_number("lr", np.float32(0.5), FitError)
    assert check_path("path", "a/b", FitError) == Path("a/b")


def test_a_path_that_the_system_cannot_encode_is_named_in_words_that_can_be_printed() -> None:
    with pytest.raises(ArtifactError, match=r"path is .*which the system cannot encode") as caught:
        HEAD.save("a\ud800")
    assert str(caught.value).isprintable()
    assert check_path("path", "caf\udce9", FitError) == Path("caf\udce9")  # a name in Latin-1, as os.listdir gives it


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import compoff
from compoff.errors import BackendError
assert compoff.Head
try:
    compoff.Tail
except BackendError as error:
    print(error)
"""


def test_without_torch_what_needs_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("compoff.Tail needs torch, which is not installed")
