"""The processor by name and instructions, from what Linux says of processors that are not this one."""

from __future__ import annotations

import pytest

from maasdam.engines import processor

MILAN = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse4_2 avx avx2 vaes\n\nprocessor\t: 1\nflags\t\t: amx_int8\n"
GRANITE = "model name\t: Intel(R) Xeon(R)\nflags\t\t: avx2 avx512f avx512_vnni amx_bf16 amx_int8\n"
GRAVITON = "BogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.mark.parametrize(
    ("said", "found", "name", "has_int8"),
    [
        (MILAN, ("avx2",), "AMD EPYC (avx2), ", False),
        (GRANITE, ("amx_int8", "amx_bf16", "avx512_vnni", "avx512f", "avx2"), "Intel(R) Xeon(R) (amx_int8), ", True),
        (GRAVITON, ("i8mm", "asimddp", "bf16"), " (i8mm), ", True),
        ("", None, " cores", True),
    ],
)
def test_what_linux_says_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, said: str, found: tuple[str, ...] | None, name: str, has_int8: bool
) -> None:
    monkeypatch.setattr(processor.Path, "read_text", lambda _: said)
    assert processor.instructions() == found and processor.has_int8() is has_int8
    assert name in processor.processor_name()
