"""The child process of `to_coreml`: a traced program in, a Core ML package out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeclip.quantize import mil
from edgeclip.quantize.mil import ct
from edgeclip.quantize.mil_process import OPTIONS, RESULT, serve

_UNWANTED = {
    "common::add_int16_cast",  # of token ids: it takes int16 for ids that need uint16
    "common::guard_negative_gather_indices",  # token ids are never negative
    "common::fuse_elementwise_to_batchnorm",  # pixels are scaled in float32, outside the tower
}


def main(folder: Path) -> None:
    options = json.loads((folder / OPTIONS).read_text("utf-8"))
    program = _front(torch.export.load(folder / "program.pt2"), options)
    _name_operations(program)
    model = _back(program, options)
    _describe(model, options)
    mil.store(model, folder / RESULT, options["tower"])


def _front(traced: Any, options: dict[str, Any]) -> Any:
    """PyTorch's program as one of Core ML's intermediate language, operator by operator."""
    return ct.convert(
        traced,
        inputs=[_input(options)],
        outputs=[ct.TensorType(name=options["output"], dtype=np.float32)],
        convert_to="milinternal",
        minimum_deployment_target=ct.target[options["deployment"]],
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )


def _input(options: dict[str, Any]) -> Any:
    if options["tower"] == "image":
        shape = (1, *options["shape"])
        return ct.ImageType(name=options["input"], shape=shape, color_layout=ct.colorlayout.RGB)
    shapes = [(batch + 1, *options["shape"]) for batch in range(options["batches"])]
    return ct.TensorType(name=options["input"], shape=ct.EnumeratedShapes(shapes, default=shapes[0]), dtype=np.int32)


def _name_operations(program: Any) -> None:
    """Each after its result, which has the name of the traced operator; coremltools numbers some of them instead."""
    main_function = program.functions["main"]
    for operation in main_function.operations:
        if operation.outputs[0] not in main_function.outputs:
            operation.name = operation.outputs[0].name


def _back(program: Any, options: dict[str, Any]) -> Any:
    """The package: optimised, in half precision where that is wanted and possible."""
    wide = set(options["float32"])
    passes = ct.PassPipeline()
    passes.remove_passes(_UNWANTED)
    half = ct.transform.FP16ComputePrecision(op_selector=lambda operation: operation.name not in wide)
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target[options["deployment"]],
        compute_precision=half if options["half"] else ct.precision.FLOAT32,
        pass_pipeline=passes,
        skip_model_load=True,
    )


def _describe(model: Any, options: dict[str, Any]) -> None:
    about = options["about"]
    model.author, model.license, model.version = about["author"], about["license"], about["version"]
    model.short_description = about["description"]
    model.input_description[options["input"]] = about["input"]
    model.output_description[options["output"]] = about["output"]
    model.user_defined_metadata.update(about["user"])


if __name__ == "__main__":
    serve(main)
