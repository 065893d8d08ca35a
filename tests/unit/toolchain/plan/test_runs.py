from toolchain.plan.runs import runners


def by_flavour(*schemes, **options):
    return {runner.flavour: runner for runner in runners(schemes, **options)}


def test_a_plain_model_runs_everywhere():
    found = by_flavour((None, None))
    assert list(found) == ["tensorrt", "pytorch", "vllm", "openvino"]
    assert found["tensorrt"].version == "1.2.1"
    assert found["tensorrt"].container == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert found["openvino"].gpus == ()


def test_who_has_no_kernel_is_left_out():
    assert list(by_flavour(("NVFP4", 16))) == ["tensorrt", "pytorch", "vllm", "openvino"]
    assert set(by_flavour(("NVFP4", 16))["vllm"].gpus) < set(by_flavour((None, None))["vllm"].gpus)
    assert "vllm" not in by_flavour(("W4A8_AWQ", 128))
    assert list(by_flavour(("W4A16_AWQ", 32))) == ["openvino"]  # no GPU kernel has groups of 32
    assert by_flavour(("FP8", None), ("W8A8_SQ_PER_CHANNEL", None)).keys() == {"tensorrt", "vllm", "openvino"}
    assert runners([("W2A2", None)]) == []


def test_a_cache_narrows_it():
    plain, cached = by_flavour((None, None)), by_flavour((None, None), kv_cache="FP8")
    assert set(cached["tensorrt"].gpus) < set(plain["tensorrt"].gpus)
    assert "openvino" in cached


def test_a_form_that_is_not_read_is_told():
    found = by_flavour(("W4A16_AWQ", 128), form="gptq")
    assert found["pytorch"].note == "after `llmbuild build`: it does not read the form gptq"
    assert found["vllm"].note == ""
