"""The smallest models of the zoo through every command; `make zoo` takes all of them."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
pytest.importorskip("transformers", reason="the extra `interop` is not installed: transformers")
for needed in ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "compressed_tensors"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"the extra `interop` is not installed: {needed}", allow_module_level=True)

from zoo import loaders  # noqa: E402
from zoo.export import write  # noqa: E402
from zoo.structures import Structure, load  # noqa: E402
from zoo.trial import Trial  # noqa: E402

# What other packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

SMALLEST = (
    ("BertForMaskedLM", "torchscript"),
    ("DistilBertForSequenceClassification", "dynamo"),
    ("AlbertForMaskedLM", "torchscript"),
    ("GPT2LMHeadModel", "torchscript"),
    ("LlamaForCausalLM", "torchscript"),
    ("T5ForConditionalGeneration", "torchscript"),
    ("ViTForImageClassification", "torchscript"),
    ("ResNetForImageClassification", "dynamo"),
    ("ConvNextV2ForImageClassification", "torchscript"),
    ("Qwen3ForCausalLM", "saved"),
    ("BertForMaskedLM", "saved"),
    ("ResNetForImageClassification", "weights"),
)


@pytest.fixture(scope="module")
def structures() -> Iterator[dict[str, Structure]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield dict(load(("transformers",)))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "form"), SMALLEST)
def test_every_command_leaves_a_smaller_model_that_its_loader_reads(
    structures: dict[str, Structure], tmp_path: Path, name: str, form: str
) -> None:
    made = write(structures[name], list(structures).index(name), tmp_path, form)
    inputs = Path(made.inputs)
    readers = {"saved": loaders.transformers(name, inputs), "weights": loaders.ourselves}
    trial = Trial(made, tmp_path / "out", readers.get(form, loaders.onnxruntime(inputs)))
    results = [trial(command) for command in trial.commands()]
    assert {each.command: each.problems for each in results if each.problems} == {}
