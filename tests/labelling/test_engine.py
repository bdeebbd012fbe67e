"""Engines: the same logits from each, and one line where there are none."""

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn
from torchvision.tv_tensors import Image, Mask

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.labels import Classes
from ccsegformer.errors import EngineError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling import _graph, _openvino
from ccsegformer.labelling.engine import Engine, open_engine
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

SMALL = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 1, 4]}
SMALL |= {"decoder_hidden_size": 32, "num_labels": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ccsegformer" / "openvino"


def make(seed: int = 0, **overrides: object) -> CrissCrossSegformerForSemanticSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CrissCrossSegformerForSemanticSegmentation(
            CrissCrossSegformerConfig(**{**SMALL, **overrides})
        )
        for module in model.modules():  # at 0 LePE, gamma and biases would pass however they were computed
            for name, parameter in module.named_parameters(recurse=False):
                if name in ("bias", "gamma") or "lepe" in type(module).__name__.lower():
                    nn.init.normal_(parameter, std=0.3)
    model.decode_head.batch_norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval()


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "overrides",
    [
        {"attention": "criss_cross"},
        {"attention": "efficient"},
        {"attention": "none"},
        {"attention": ["criss_cross", "efficient", "none", "criss_cross"], "recurrence": 2},
        {"projection": "ccnet", "recurrence": 2},
        {"lepe": False, "num_channels": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 65, 131), (1, 33, 300)])
def test_openvino_gives_the_logits_of_pytorch(overrides: dict, shape: tuple[int, int, int]) -> None:
    model = make(**overrides)
    images = pixels(shape[0], model.config.num_channels, *shape[1:])
    engine = open_engine(model)
    assert (engine.name, engine.precision, engine.note) == ("openvino", "fp32", "")
    expected = open_engine(model, "torch")(images)
    with torch.inference_mode():
        torch.testing.assert_close(expected, model(images).logits)
    assert difference(engine(images), expected) < 1e-5
    assert difference(engine(images), expected) < 1e-5  # as it stays


@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 256, 160), (1, 250, 161)])
@pytest.mark.parametrize("band", [1, 5000, 20000])
def test_bands_of_rows_make_the_whole_map(
    band: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_graph, "MAP_CHUNK_VALUES", band)
    model = make()
    images = pixels(shape[0], 3, *shape[1:])
    assert difference(open_engine(model)(images), open_engine(model, "torch")(images)) < 1e-5


def test_large_scores_are_right() -> None:
    model = make()
    for module in model.modules():
        if hasattr(module, "q_proj"):
            module.q_proj.weight.data *= 30  # a softmax that is all but one key
    images = pixels(1, 3, 96, 96)
    assert difference(open_engine(model)(images), open_engine(model, "torch")(images)) < 1e-4


def test_many_engines_in_one_process_stay_right() -> None:
    for seed in range(15):
        model = make(seed)
        images = pixels(1, 3, 64, 64 + 32 * (seed % 4))
        assert difference(open_engine(model)(images), open_engine(model, "torch")(images)) < 1e-5


def test_what_is_compiled_is_kept_on_disk_and_told_apart(own_cache: Path) -> None:
    images, model = pixels(1, 3, 64, 96), make()
    first = open_engine(model)(images)
    [blob] = own_cache.iterdir()
    before = blob.stat().st_mtime_ns
    assert torch.equal(open_engine(model)(images), first)
    assert [blob] == list(own_cache.iterdir()) and blob.stat().st_mtime_ns > before  # used
    other = make(1)
    assert difference(open_engine(other)(images), open_engine(other, "torch")(images)) < 1e-5
    assert len(list(own_cache.iterdir())) == 2
    blob.write_bytes(b"damaged")
    assert difference(open_engine(model)(images), first) < 1e-6


def test_the_cache_is_bounded(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_openvino, "BYTES_ON_DISK", 1)
    open_engine(make())(pixels(1, 3, 64, 64))
    assert list(own_cache.iterdir()) == []


def test_nan_from_a_badly_compiled_graph_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make(), pixels(1, 3, 64, 64)
    engine, run, calls = open_engine(model), _openvino._infer, []

    def fails_once(request: object, array: np.ndarray) -> np.ndarray:
        calls.append(request)
        logits = run(request, array)
        return np.full_like(logits, np.nan) if len(calls) == 1 else logits

    monkeypatch.setattr(_openvino, "_infer", fails_once)
    assert difference(engine(images), open_engine(model, "torch")(images)) < 1e-5
    assert len(calls) == 2 and calls[0] is not calls[1]


def test_a_graph_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _openvino._infer
    monkeypatch.setattr(_openvino, "_infer", lambda *arguments: run(*arguments) + 0.01)
    engine = open_engine(make())
    assert engine.name == "torch" and "differ from PyTorch's" in engine.note


@pytest.mark.parametrize("name", ["openvino", "torch"])
@pytest.mark.parametrize("where", ["decode_head.classifier", "segformer.stages.0.blocks.0.mlp.fc1"])
def test_logits_that_are_not_finite_are_never_labels(name: str, where: str) -> None:
    model = make()
    model.get_submodule(where).weight.data.view(-1)[0] = float("nan")
    with pytest.raises(EngineError, match=r"^a\.jpg: the model's logits are not finite"):
        predict_labels(
            open_engine(model, name), Image(torch.zeros(3, 64, 64, dtype=torch.uint8)), name="a.jpg"
        )


def test_half_precision_that_overflows_says_the_remedy() -> None:
    model = make()
    model.decode_head.classifier.weight.data *= 1e7
    engine = open_engine(model, "torch", "fp16")
    with pytest.raises(EngineError, match="compute in bf16 or fp32"):
        engine(pixels(1, 3, 64, 64))


class Two:
    """Two random images with labels."""

    classes = Classes(tuple("abcde"))
    names = ("first", "second")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        if index > 1:
            raise IndexError
        generator = torch.Generator().manual_seed(index)
        size = (70 + index, 90)
        image = Image(torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator))
        mask = Mask(torch.randint(5, size, dtype=torch.uint8, generator=generator))
        return {"image": image, "mask": mask, "name": self.names[index]}


def test_both_engines_score_alike_and_say_what_computed() -> None:
    model = make()
    scores = {name: evaluate(model, Two(), engine=name) for name in ("openvino", "torch")}  # type: ignore[arg-type]
    matrices = [np.array(score.confusion) for score in scores.values()]
    assert np.abs(matrices[0] - matrices[1]).sum() <= 4  # ties
    for name, score in scores.items():
        assert score.protocol["engine"].startswith(f"{name} ")
        assert (score.protocol["device"], score.protocol["precision"]) == ("cpu", "fp32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fp32_is_computed_whatever_the_weights_are_stored_in(dtype: torch.dtype) -> None:
    stored = make().to(dtype)
    images = pixels(1, 3, 64, 64)
    with torch.inference_mode():
        expected = make().to(dtype).float()(images).logits
    for name in ("openvino", "torch"):
        assert difference(open_engine(stored, name)(images), expected) < 1e-5
    assert next(stored.parameters()).dtype == dtype
    evaluation = evaluate(stored, Two(), protocol=EvaluationProtocol())
    assert evaluation.protocol["precision"] == "fp32"


def test_a_module_that_is_not_plain_is_run_by_pytorch_and_named() -> None:
    model, images = make(), pixels(1, 3, 64, 64)
    seen: list[object] = []
    model.segformer.stages[1].blocks[0].mlp.fc2.register_forward_hook(lambda *_: seen.append(1))
    engine = open_engine(model)
    assert engine.name == "torch" and "segformer.stages.1.blocks.0.mlp.fc2 has hooks" in engine.note
    engine(images)
    assert seen
    with pytest.raises(EngineError, match=r"mlp\.fc2 has hooks"):
        open_engine(model, "openvino")


def test_weights_that_change_under_an_open_engine_are_noticed() -> None:
    model = make()
    engine = open_engine(model)
    model.decode_head.classifier.weight.data += 1
    with pytest.raises(EngineError, match="open it anew"):
        engine(pixels(1, 3, 64, 64))


def test_an_engine_is_given_back_or_refused() -> None:
    engine = open_engine(make())
    assert isinstance(engine, Engine) and open_engine(engine) is engine
    with pytest.raises(EngineError, match="openvino in fp32 is open, not torch in fp32"):
        open_engine(engine, "torch")
    for arguments in (("tensorflow",), (None, "int4"), ("openvino", "fp16"), ("onnxruntime",)):
        with pytest.raises(EngineError):
            open_engine(make(), *arguments)  # type: ignore[arg-type]


def test_modules_keep_their_modes() -> None:
    model = make().train()
    model.decode_head.dropout.eval()
    modes = [module.training for module in model.modules()]
    for name in ("openvino", "torch"):
        open_engine(model, name)(pixels(1, 3, 64, 64))
        assert [module.training for module in model.modules()] == modes


def test_processes_that_share_the_cores_do_not_pin_their_threads_to_the_same_ones(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    core = openvino.Core()
    for threads, pinned in ((1, False), (2, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert _openvino._settings(core, "fp32")["ENABLE_CPU_PINNING"] is pinned


@pytest.mark.parametrize("width", [256, 1024])
@torch.no_grad()
def test_scores_far_apart_are_right_at_every_size(width: int) -> None:
    """Lines of up to 64 positions need no landmarks; of 256, the graph gives NaN, and PyTorch steps in."""
    model = make(attention=["criss_cross", "none", "none", "none"])
    attention = model.segformer.stages[0].blocks[0].attention
    attention.q_proj.weight *= 30_000
    image = pixels(1, 3, 32, width)
    graph = _openvino._CompiledModel(_openvino._core(), model, "fp32").run_graph(image)
    assert bool(graph.isfinite().all()) == (width == 256)
    expected = model(pixel_values=image).logits
    assert difference(open_engine(model, "openvino")(image), expected) < 1e-5


def test_graphs_with_other_landmarks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = _openvino._CompiledModel(_openvino._core(), make(), "fp32")
    before = compiled._key((1, 3, 64, 64))
    monkeypatch.setattr(_graph, "LANDMARKS", _graph.LANDMARKS // 2)
    assert compiled._key((1, 3, 64, 64)) != before
