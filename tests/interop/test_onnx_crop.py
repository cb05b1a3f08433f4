"""Models that torch has exported: what their graphs look like is torch's choice, cropping must understand it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402

import modelopt_rs as mo  # noqa: E402
from graph_nets import crop_graph, crops, feeds_of, groups_of, run, zeroed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

DIMS = {"batch": 2, "words": 7}


def export(module, inputs, path, *, dynamo, axes):
    """Export a module with axes that may have any length."""
    options = {"input_names": list(inputs), "output_names": ["y"], "dynamo": dynamo}
    if dynamo:
        pytest.importorskip("onnxscript")
        dims = {name: torch.export.Dim(name) for name in DIMS}
        options["dynamic_shapes"] = tuple({axis: dims[name] for axis, name in axes.items()} for _ in inputs)
    else:
        options["dynamic_axes"] = dict.fromkeys(inputs, axes)
    torch.onnx.export(module.eval(), tuple(inputs.values()), path, **options)
    return onnx.load(path)


def randomize(module):
    """Give each tensor other numbers: the exporter stores equal ones once."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(torch.randn_like(tensor) / 4)
        for name, tensor in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return module


class Classifier(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
        )
        config._attn_implementation = attention
        self.model = transformers.BertForSequenceClassification(config)

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    made = {}

    def bert(attention, dynamo):
        if (attention, dynamo) not in made:
            inputs = {"ids": torch.randint(0, 50, (2, 7)), "mask": torch.ones(2, 7, dtype=torch.long)}
            path = tmp_path_factory.mktemp("bert") / "a.onnx"
            module = randomize(Classifier(attention))
            made[attention, dynamo] = export(module, inputs, path, dynamo=dynamo, axes={0: "batch", 1: "words"})
        return made[attention, dynamo]

    return bert


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dynamo", [False, True])
def test_bert_loses_heads_and_inner_units(berts, attention, dynamo):
    groups = crops(berts(attention, dynamo), DIMS)
    kinds = sorted((group.kind, group.units) for group in groups.values())
    assert kinds == [("ffn", 24), ("ffn", 40), ("ffn", 40), ("heads", 4), ("heads", 4), ("hidden", 24)]


def test_a_cropped_bert_runs_from_file_to_file(berts, tmp_path):
    onnx.save(berts("eager", False), tmp_path / "a.onnx")
    report = mo.crop_file(
        tmp_path / "a.onnx", tmp_path / "b.onnx", what=["heads", "ffn"], keep={"*.heads": 2, "*.ffn": 20}
    )
    assert {group.name.rpartition(".")[2]: group.kept for group in report.groups} == {"heads": 2, "ffn": 20}
    onnx.checker.check_model(onnx.load(tmp_path / "b.onnx"), full_check=True)


class Block(torch.nn.Module):
    """An inverted bottleneck with squeeze and excitation, as in MobileNet."""

    def __init__(self, channels, inner):
        super().__init__()
        self.wide = torch.nn.Sequential(torch.nn.Conv2d(channels, inner, 1), torch.nn.BatchNorm2d(inner))
        self.deep = torch.nn.Sequential(torch.nn.Conv2d(inner, inner, 3, padding=1, groups=inner))
        self.down, self.up = torch.nn.Conv2d(inner, 4, 1), torch.nn.Conv2d(4, inner, 1)
        self.narrow = torch.nn.Conv2d(inner, channels, 1)

    def forward(self, x):
        h = torch.nn.functional.hardswish(self.deep(torch.relu(self.wide(x))))
        s = torch.relu(self.down(h.mean((2, 3), keepdim=True)))
        return x + self.narrow(h * torch.sigmoid(self.up(s)))


class Images(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = torch.nn.Sequential(Block(8, 12), Block(8, 16))
        self.shuffle = torch.nn.Conv2d(8, 16, 1)
        self.head = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.GELU(), torch.nn.Linear(12, 5))

    def forward(self, x):
        h = self.shuffle(self.blocks(torch.nn.functional.silu(self.stem(x))))
        left, right = h.chunk(2, 1)
        h = torch.cat([left * torch.sigmoid(right), right], 1)
        h = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(h, 2), scale_factor=2.0)
        return self.head(torch.nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_mobile_network_loses_channels(tmp_path, dynamo):
    inputs = {"x": torch.randn(2, 3, 16, 16)}
    proto = export(randomize(Images()), inputs, tmp_path / "a.onnx", dynamo=dynamo, axes={0: "batch"})
    groups = crops(proto, DIMS)
    channels = sorted(group.units for group in groups.values() if group.kind == "channels")
    # Two excitations, the stream, pairs of the gate, two inner widths. The older exporter computes where halves begin.
    assert channels == [4, 4, 8, 8, 12, 16]
    assert [group.units for group in groups.values() if group.kind == "ffn"] == [12]


def test_the_answers_of_a_file_that_loses_units_of_zeros_stay(berts, tmp_path):
    """Whole layers of zeros change nothing when they go."""
    proto = onnx.ModelProto()
    proto.CopyFrom(berts("eager", False))
    model, groups, _ = groups_of(proto)
    del model
    chosen = [group for group in groups.values() if group.kind == "ffn" and group.units == 40]
    for weight in proto.graph.initializer:
        for group in chosen:
            for member in (member for member in group.members if member.name == weight.name and member.scored):
                array = onnx.numpy_helper.to_array(weight).copy()
                np.moveaxis(array, member.axis, 0)[::2] = 0
                weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(proto, tmp_path / "a.onnx")
    mo.crop_file(tmp_path / "a.onnx", tmp_path / "b.onnx", what="ffn", keep={group.name: 20 for group in chosen})
    feeds = feeds_of(proto, DIMS)
    before, after = run(proto, feeds)[0], run(onnx.load(tmp_path / "b.onnx"), feeds)[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
ARCHITECTURES = {
    "vit": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=3)
        ),
        # Both layers have heads and inner units of their own.
        [("ffn", 40), ("ffn", 40), ("heads", 4), ("heads", 4), ("hidden", 24)],
    ),
    "t5": (
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4)
        ),
        # All layers add the same bias of each head.
        [("ffn", 40), ("ffn", 40), ("heads", 4)],
    ),
    "resnet": (
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3)
        ),
        [("channels", n) for n in (2, 2, 3, 3, 8, 12)],
    ),
    "convnext": (
        lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3)
        ),
        [("ffn", 32), ("ffn", 48), ("hidden", 8), ("hidden", 12)],
    ),
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=50, num_key_value_heads=2)),
        # Two heads share keys and values.
        [("ffn", 40), ("ffn", 40), ("heads", 2), ("heads", 2), ("hidden", 24)],
    ),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=32)
        ),
        [("ffn", 96), ("ffn", 96), ("heads", 4), ("heads", 4), ("hidden", 24)],
    ),
}


class Answer(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        cache = {"use_cache": False} if hasattr(self.model.config, "use_cache") and x.dim() == 2 else {}
        out = self.model(x, **cache)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


@pytest.mark.parametrize(
    ("name", "dynamo"), [(name, name in ("llama", "gpt2")) for name in ARCHITECTURES] + [("vit", True), ("t5", True)]
)
def test_other_architectures_are_understood(tmp_path, name, dynamo):
    make, kinds = ARCHITECTURES[name]
    model = make()
    if hasattr(model.config, "_attn_implementation"):
        model.config._attn_implementation = "eager"
    images = name in ("vit", "resnet", "convnext")
    x = torch.randn(2, 3, 16, 16) if images else torch.randint(0, 50, (2, 7))
    axes = {0: "batch"} if images else {0: "batch", 1: "words"}
    proto = export(Answer(randomize(model)), {"x": x}, tmp_path / "a.onnx", dynamo=dynamo, axes=axes)
    groups = crops(proto, DIMS)
    assert sorted((group.kind, group.units) for group in groups.values()) == kinds


class Shuffled(torch.nn.Module):
    """Channels of two branches change places, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = (torch.nn.Conv2d(n, 8, 1) for n in (3, 8, 8))
        self.deep = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = torch.nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.cat((torch.relu(self.left(x)), torch.relu(self.right(x))), 1)
        n, channels, height, width = x.size()
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.head(self.deep(x.view(n, channels, height, width)))


@pytest.mark.parametrize("axes", [{}, {0: "batch"}, {0: "batch", 2: "words", 3: "words"}], ids=len)
def test_a_shuffle_of_computed_lengths_loses_channels(tmp_path, axes):
    proto = export(randomize(Shuffled()), {"x": torch.randn(2, 3, 7, 7)}, tmp_path / "a.onnx", dynamo=False, axes=axes)
    groups = crops(proto, DIMS)
    assert sorted((group.kind, group.units) for group in groups.values()) == [("channels", 8), ("channels", 8)]


class Attending(torch.nn.Module):
    """Attention between two layers, or layers of an encoder."""

    def __init__(self, how, first):
        super().__init__()
        self.weights, layer = how == "weights", {"batch_first": first}
        if how in ("weights", "plain"):
            self.middle = torch.nn.MultiheadAttention(24, 4, **layer)
        else:
            one = torch.nn.TransformerEncoderLayer(24, 4, 40, norm_first=how == "norm first", **layer)
            self.middle = torch.nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
        self.before, self.behind = torch.nn.Linear(6, 24), torch.nn.Linear(24, 3)

    def forward(self, x):
        x = self.before(x)
        if isinstance(self.middle, torch.nn.MultiheadAttention):
            return self.behind(self.middle(x, x, x, need_weights=self.weights)[0])
        return self.behind(self.middle(x))


@pytest.fixture
def slow_path():
    """What torch exports is what it runs: its fused path has no operator in ONNX."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("how", ["weights", "plain", "norm first", "norm last"])
def test_the_older_exporters_attention_loses_heads(tmp_path, slow_path, how, first, open_batch):
    """Queries, keys and values are told apart before heads, which lie in one axis with a batch of any length."""
    x = torch.randn(2, 7, 6) if first else torch.randn(7, 2, 6)
    axes = {0 if first else 1: "batch"} if open_batch else {}
    module = randomize(Attending(how, first))
    proto = export(module, {"x": x}, tmp_path / "a.onnx", dynamo=False, axes=axes)
    for batch in (1, 2, 3) if open_batch else (2,):
        groups = crops(proto, {"batch": batch})
        kinds = sorted((group.kind, group.units) for group in groups.values())
        if how in ("weights", "plain"):
            assert kinds == [("ffn", 24), ("ffn", 24), ("heads", 4)]
        else:
            assert kinds == [("ffn", 40), ("ffn", 40), ("heads", 4), ("heads", 4), ("hidden", 24)]


def test_heads_and_what_is_before_them_go_in_any_order_and_twice(tmp_path, slow_path):
    """Each may be cropped alone: the lengths that a graph computes are those from before any of them."""
    module, axes = randomize(Attending("plain", True)), {0: "batch"}
    proto = export(module, {"x": torch.randn(2, 7, 6)}, tmp_path / "a.onnx", dynamo=False, axes=axes)
    feeds = feeds_of(proto, {"batch": 3})
    for before, heads, order in ((24, 3, 1), (7, 4, -1), (5, 1, 1), (5, 2, -1)):
        model, groups, _ = groups_of(proto)
        kept = {group.name: np.arange(heads if group.kind == "heads" else before) for group in groups.values()}
        wanted = run(zeroed(model, list(groups.values()), kept), feeds)
        crop_graph(model, list(groups.values())[::order], kept)
        small = ir.serde.serialize_model(model)
        np.testing.assert_allclose(run(small, feeds)[0], wanted[0], rtol=2e-5, atol=2e-5)
        crops(small, {"batch": 3})
