"""The child process of `ir_process`: an ONNX file in, a quantized IR and the names of its integer layers out.

NNCF is imported without what it does not need. Telemetry: NNCF reports to an analytics service through the same library
that OpenVINO uses, which `ov_library` keeps out. PyTorch and ONNX: NNCF imports them where they are installed, which
takes 2.4 s and 180 MB, to support models that we do not give it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeclip.backends.ov_library import ov
from edgeclip.quantize import correction, ir_attention, ir_graph, ir_patches
from edgeclip.quantize.groups import GROUP
from edgeclip.quantize.ir_convolutions import compress_convolutions, keep_sums, kernels
from edgeclip.quantize.ir_learned import apply_scales
from edgeclip.quantize.scales import FILE as SCALES
from edgeclip.quantize.scales import Learned


def _nncf() -> Any:
    """The library; Python reads None among the loaded modules as "cannot be imported"."""
    loaded = cast("dict[str, Any]", sys.modules)
    loaded |= {"torch": None, "onnx": None}
    import nncf

    return nncf


nncf = _nncf()


def main(folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text("utf-8"))
    model = ov.Core().read_model(folder / "model.onnx")
    model.set_friendly_name(options["tower"])
    ir_graph.fold(model)
    if (folder / SCALES).is_file():
        made = _learned(model, Learned.from_bytes((folder / SCALES).read_bytes()))
    elif ir_graph.names(model) <= set(options["keep"]):
        made = model  # and its token table stays as it is, too
    else:
        made = _MAKERS[options["precision"]](model, options, _samples(folder))
    names = ir_graph.integer_layers(made, activations=options["precision"] == "w8a8")
    ir_graph.halve(made)
    ir_graph.rename(made)
    (folder / "quantized.json").write_text(json.dumps(names), "utf-8")
    xml = folder / f"{options['tower']}.xml"
    ov.save_model(made, xml, compress_to_fp16=False)
    tidy(xml)


def _samples(folder: Path) -> Any:
    """Inputs of the model, one row each; None where there are none."""
    file = folder / "samples.npy"
    return np.load(file, allow_pickle=False) if file.is_file() else None


def _dataset(samples: Any) -> Any:
    return nncf.Dataset([sample[None] for sample in samples])


def _w8a8(model: Any, options: dict[str, Any], samples: Any) -> Any:
    """Weights int8, one scale a channel; activations uint8 with a zero point. The token table becomes int8 too."""
    exact = kernels(model)
    left_out = ir_graph.scope_names(model, options["keep"], first=options["tower"] == "text")
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    made = nncf.quantize(
        model,
        _dataset(samples),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        model_type=nncf.ModelType.TRANSFORMER if options["transformer"] else None,
        ignored_scope=nncf.IgnoredScope(names=left_out, validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # The mean over samples of their extremes, which is the default, clips half of the samples.
            activations_range_estimator_params=ranges.HISTOGRAM,
            # Of what rounding does to a channel, the mean over samples explains too little: 1 - cosine of the built-in
            # model's images was 4.7e-4 with the correction, 2.0e-4 without, 1.1e-4 with sums kept instead.
            disable_bias_correction=True,
        ),
    )
    keep_sums(made, exact)
    ir_patches.quantize_patches(made, options["keep"])
    ir_attention.turn_keys(made)
    ir_attention.round_sooner(made)
    return made if options["tower"] == "image" else _compress_tables(made)


def _compress_tables(model: Any) -> Any:
    """The token table in int8, one scale a row; layers stay as they are."""
    layers = nncf.IgnoredScope(types=list(ir_graph.LAYERS), validate=False)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=layers)


def _learned(model: Any, learned: Learned) -> Any:
    """What was trained, which knows nothing of the token table: that becomes int8."""
    apply_scales(model, learned)
    return _compress_tables(model)


def _w8a16(model: Any, options: dict[str, Any], samples: Any) -> Any:
    """Weights int8, one scale a channel; the token table too."""
    exact, scope = kernels(model), _scope(model, options)
    made = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=scope)
    keep_sums(made, exact)
    return made


def _w4a16(model: Any, options: dict[str, Any], samples: Any) -> Any:
    """Weights int4, one scale a group; the token table too. With samples, GPTQ corrects the rounding."""
    corrected: dict[str, Any] = {}
    if samples is not None:
        samples = samples[: correction.SAMPLES]
        corrected = {"dataset": _dataset(samples), "subset_size": len(samples), "gptq": True}
    compress_convolutions(model, options["keep"], GROUP, samples)
    ir_graph.turn_weights(model)
    fallback = nncf.GroupSizeFallbackMode.ADJUST
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=1.0,
        group_size=GROUP,
        all_layers=True,
        backup_mode=nncf.BackupMode.INT8_SYM,
        ignored_scope=_scope(model, options),
        advanced_parameters=nncf.AdvancedCompressionParameters(group_size_fallback_mode=fallback),
        **corrected,
    )


def _scope(model: Any, options: dict[str, Any]) -> Any:
    kept = set(options["keep"])
    names = [node.get_friendly_name() for node in ir_graph.layers(model) if ir_graph.name_of(node) in kept]
    return nncf.IgnoredScope(names=names, validate=False)


_MAKERS = {"w8a8": _w8a8, "w8a16": _w8a16, "w4a16": _w4a16}


def tidy(xml: Path) -> None:
    """The model's run-time information repeats options, versions and paths of the machine that made it."""
    text = xml.read_text(encoding="utf-8")
    xml.write_text(re.sub(r"\s*<rt_info>(?:(?!</?rt_info>).)*</rt_info>\s*(?=</net>)", "\n", text, flags=re.S), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
