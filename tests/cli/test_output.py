"""What libraries may print: nothing that a user can do nothing about, and all that a user can act on."""

import warnings

import pytest

from prefkd.cli.output import hush_libraries

SILENT = [
    (FutureWarning, "`gradient_checkpointing_enable` is deprecated and will be removed in v6. Use another instead."),
    (UserWarning, "barrier(): using the device under current context. You can specify `device_id` in ..."),
    (UserWarning, "OptimState8bit does not implement _stable_hash_for_caching. For PT2-compatible tensor ..."),
]
SHOWN = [
    (UserWarning, "Detected call of `lr_scheduler.step()` before `optimizer.step()`."),
    (FutureWarning, "`something_of_a_users_own` is deprecated"),
    (DeprecationWarning, "a term of a user's own is old"),
    (UserWarning, "barrier of another kind"),
]


@pytest.mark.parametrize(("warning", "is_shown"), [(w, False) for w in SILENT] + [(w, True) for w in SHOWN])
def test_only_warnings_for_developers_are_silent(warning, is_shown):
    category, text = warning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hush_libraries()
        warnings.warn(text, category, stacklevel=1)
    assert bool(caught) is is_shown
