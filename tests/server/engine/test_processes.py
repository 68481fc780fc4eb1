"""What a process of the engine does when vLLM loads the plugin in it."""

from unittest.mock import Mock

import pytest

from server.engine import cpu_gemm, cpu_lora, cpu_norm, cpu_sample, cpu_wait, plugin


@pytest.mark.parametrize(("parent", "is_ours", "times"), [(None, True, 0), (object(), False, 0), (object(), True, 1)])
def test_one_of_our_own_engine_logs_as_we_do_and_ends_without_collecting(
    parent: object, is_ours: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, configured = Mock(), Mock()
    monkeypatch.setattr(plugin, "end_without_collecting", ends)
    monkeypatch.setattr(plugin, "configure", configured)
    monkeypatch.setattr(plugin, "parent_process", lambda: parent)
    monkeypatch.delenv(plugin.LOG_LEVEL_VARIABLE, raising=False)
    if is_ours:
        monkeypatch.setenv(plugin.LOG_LEVEL_VARIABLE, "debug")
    plugin._settle_in()
    assert ends.call_count == times
    assert configured.call_args_list == [(("engine", "debug"),)] * times


@pytest.mark.parametrize("is_ours", [True, False])
def test_weights_are_kept_in_half_in_our_own_engine_alone(is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    install = Mock()
    for kernels in (cpu_lora, cpu_norm, cpu_sample, cpu_wait):
        monkeypatch.setattr(kernels, "install", Mock())
    monkeypatch.setattr(cpu_gemm, "install", install)
    monkeypatch.delenv(plugin.OWN_VARIABLE, raising=False)
    if is_ours:
        monkeypatch.setenv(plugin.OWN_VARIABLE, "1")
    plugin._replace_kernels()
    install.assert_called_once_with(in_half=is_ours)
