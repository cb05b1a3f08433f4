"""Who reads what the commands write: onnxruntime, transformers, and our own reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.trial import Outputs


def onnxruntime(inputs: Path) -> Callable[[Path], Outputs]:
    """Run a model on each sample of a directory."""

    def answers(path: Path) -> Outputs:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names, wanted = [each.name for each in session.get_outputs()], {each.name for each in session.get_inputs()}
        found: Outputs = []
        for file in sorted(inputs.glob("*.npz")):
            with np.load(file) as sample:
                feed = {name: sample[name] for name in sample.files if name in wanted}
            found.append(dict(zip(names, (np.asarray(each) for each in session.run(None, feed)), strict=True)))
        return found

    return answers


def transformers(head: str, inputs: Path) -> Callable[[Path], Outputs]:
    """Load a directory as a class and run it on each sample; no key may be missing or left over."""

    def answers(path: Path) -> Outputs:
        import torch
        import transformers as tf

        from zoo.families import answer

        tf.utils.logging.set_verbosity_error()
        tf.utils.logging.disable_progress_bar()
        torch.manual_seed(3)
        model, told = getattr(tf, head).from_pretrained(path, output_loading_info=True)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if told[key]:
                raise ValueError(f"{key}: {sorted(map(str, told[key]))[:3]}")
        model.eval()
        found: Outputs = []
        for file in sorted(inputs.glob("*.npz")):
            with np.load(file) as sample, torch.no_grad():
                feed: dict[str, Any] = {name: torch.from_numpy(sample[name]) for name in sample.files}
                found.append({"y": answer(model(**feed)).float().numpy()})
        return found

    return answers


def ourselves(path: Path) -> Outputs:
    """The tensors of a safetensors file, plain floats again."""
    from safetensors.numpy import load_file

    import modelopt_rs as mo

    plain = path.with_name(f"{path.stem}-plain.safetensors")
    try:
        mo.dequantize_file(path, plain, overwrite=True, durable=False)
    except ValueError as error:  # nothing in it is quantized
        if "quantized" not in str(error):
            raise
        plain = path
    return [load_file(plain)]
